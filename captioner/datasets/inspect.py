"""Statistics and problems of a data set: captions, words, images, duplicates, splits that overlap."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from captioner.config import DataConfig
from captioner.data.annotations import Example, read_examples, read_references
from captioner.data.formats import detect_format
from captioner.data.images import ORIENTATION, ImageError, image_errors, open_file, open_image
from captioner.data.vocabulary import tokenize
from captioner.datasets.duplicates import group_duplicates
from captioner.devices import choose_workers
from captioner.errors import UserError
from captioner.files import read_json

HASH_SIDE = 64  # pixels of the short side that are enough for a perceptual hash
COLOUR_SIDE = 8  # side in pixels of the thumbnails whose colours are compared
SMALL = 64  # an image with a shorter side is reported as very small
STRETCHED = 4.0  # an image more than this many times as long as wide is reported as very long
MIN_COUNTS = range(1, 11)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

Captions = list[list[list[str]]]  # the words of each caption of each image


@dataclass(frozen=True)
class InspectedSplit:
    """One split of a data set; `declared`: (width, height) by image id, where the annotations have it."""

    name: str
    path: str
    format: str
    examples: list[Example]
    skipped: list[str]
    declared: dict[Any, tuple[int, int]]


@dataclass(frozen=True)
class Finding:
    """One kind of problem or peculiarity: a heading, and a line for each case.

    serious: a warning, not a note.
    images: of duplicates, the (split, file, path) of the images in each group.
    """

    kind: str
    heading: str
    lines: list[str]
    serious: bool = True
    images: list[list[tuple[str, str, Any]]] | None = None


class ImageFacts(NamedTuple):
    """The stored size of an image, whether EXIF turns it by 90°, and what duplicates are recognised by."""

    width: int
    height: int
    turned: bool
    digest: bytes  # of the file
    hash: int  # 64-bit pHash
    colours: np.ndarray  # (COLOUR_SIDE, COLOUR_SIDE, 3) uint8


class _Image(NamedTuple):
    """A readable image of a split."""

    split: str
    example: Example
    facts: ImageFacts


def read_split(
    name: str,
    path: str,
    images: Path | None = None,
    split: str = "train",
    columns: str | None = None,
    listed: str | None = None,
    images_needed: bool = True,
) -> InspectedSplit:
    """Read a split, named `name` in the report; bad entries are left out and listed in `skipped`.

    The other arguments are those of :func:`captioner.data.annotations.read_examples`. Unless `images_needed`, a COCO
    file can be read without its folder of images.
    """
    format_name = detect_format(path).name
    if format_name == "coco" and images is None and not images_needed:
        references, files = read_references(Path(path), listed=listed)
        names = {image: str(files.get(image, image)) for image in references}
        examples = [Example(i, Path(names[i]), tuple(texts), names[i]) for i, texts in references.items()]
        return InspectedSplit(name, path, format_name, examples, [], {})
    examples, skipped = read_examples(path, images, split, columns=columns, listed=listed, skip_bad=True)
    declared = _declared(Path(path)) if format_name == "coco" else {}
    return InspectedSplit(name, path, format_name, examples, skipped, declared)


def _declared(path: Path) -> dict[Any, tuple[int, int]]:
    """(width, height) by image id of the images of a COCO file that have both."""
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in read_json(path)["images"]}
    return {image: size for image, size in sizes.items() if all(isinstance(side, int) for side in size)}


def inspect(
    splits: Sequence[InspectedSplit], read_images: bool = True, workers: int = -1, distance: int = 4
) -> dict[str, Any]:
    """Inspect a data set.

    Args:
        splits: one or more; the words of the others are compared with those of the first.
        read_images: also decode the images, to find unreadable ones and duplicates.
        workers: processes that decode them; -1: one per core, at most 8.
        distance: perceptual hashes of duplicates differ in at most this many of their 64 bits.

    Returns:
        `splits`: plain numbers of each split; `findings`: a list of :class:`Finding`, warnings first.
    """
    tokens = [[[tokenize(caption) for caption in each.captions] for each in split.examples] for split in splits]
    first = list(chain.from_iterable(tokens[0]))
    first_counts, first_captions = Counter(chain.from_iterable(first)), set(map(tuple, first))
    reports, findings = [], []
    for split, captions in zip(splits, tokens, strict=True):
        statistics = _caption_statistics(captions, first_counts, first_captions)
        about = {"name": split.name, "first": split is splits[0], "path": split.path, "format": split.format}
        reports.append({**about, **statistics})
        findings += _caption_findings(split, captions)
    images: list[_Image] = []
    if read_images:
        facts = iter(read_image_facts([example.path for split in splits for example in split.examples], workers))
        for split, report in zip(splits, reports, strict=True):
            of_split = list(zip(split.examples, islice(facts, len(split.examples)), strict=True))
            findings += _image_findings(split, of_split)
            readable = [_Image(split.name, e, found) for e, found in of_split if isinstance(found, ImageFacts)]
            report["sizes"] = _size_statistics([(image.facts.width, image.facts.height) for image in readable])
            images += readable
    groups = _duplicate_groups(images, distance)
    shared = [group for group in groups if len({image.split for image in group}) > 1]
    findings.append(_duplicate_finding("overlap", "images in several splits", shared))
    for split in splits:
        repeated = [[image for image in group if image.split == split.name] for group in groups]
        repeated = [group for group in repeated if len(group) > 1]
        findings.append(_duplicate_finding("duplicates", f"{split.name}: images that occur more than once", repeated))
    same_image = {(image.split, image.example.image_id) for group in shared for image in group}
    findings += _name_findings(splits, same_image, read_images)
    return {"splits": reports, "findings": sorted((f for f in findings if f.lines), key=lambda f: not f.serious)}


def _caption_statistics(
    captions: Captions, first_counts: Counter[str], first_captions: set[tuple[str, ...]]
) -> dict[str, Any]:
    """Statistics of the captions of a split, also compared with the words and captions of the first split."""
    each = list(chain.from_iterable(captions))
    lengths = [len(caption) for caption in each]
    counts = Counter(chain.from_iterable(each))
    total = counts.total()

    def coverage(vocabulary: Counter[str], min_count: int) -> float:
        return sum(n for word, n in counts.items() if vocabulary[word] >= min_count) / max(1, total)

    return {
        "images": len(captions),
        "captions": len(each),
        "captions_per_image": _histogram(map(len, captions)),
        "caption_words": {
            "mean": float(np.mean(lengths)),
            "quantiles": _quantiles(lengths),
            "histogram": _histogram(lengths),
        },
        "tokens": total,
        "vocabulary": [
            {
                "min_count": count,
                "words": sum(n >= count for n in counts.values()),
                "coverage": coverage(counts, count),
                "coverage_by_first": coverage(first_counts, count),
            }
            for count in MIN_COUNTS
        ],
        "commonest": counts.most_common(10),
        "captions_also_in_first": sum(tuple(caption) in first_captions for caption in each),
    }


def _histogram(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    return {str(q): float(np.quantile(values, q, method="nearest")) for q in QUANTILES}


def _caption_findings(split: InspectedSplit, captions: Captions) -> list[Finding]:
    empty, repeated, long = [], [], []
    longest = DataConfig.max_length
    for example, words in zip(split.examples, captions, strict=True):
        name = example.name
        empty += [f"{name}: {text!r}" for text, each in zip(example.captions, words, strict=True) if not each]
        long += [f"{name}: {len(each)} words" for each in words if len(each) > longest]
        if len(set(map(tuple, words))) < len(words):
            repeated.append(name)
    return [
        Finding("skipped", f"{split.name}: left out, as training does with skip_bad_images", split.skipped),
        Finding("no_words", f"{split.name}: captions without a word", empty),
        Finding("repeated_captions", f"{split.name}: images with the same caption twice", repeated, serious=False),
        Finding("long_captions", f"{split.name}: captions of more than {longest} words, which are cut", long, False),
    ]


def read_image_facts(paths: Sequence[Any], workers: int = -1) -> list[ImageFacts | ImageError]:
    """The facts of many images, read in several processes, with a progress bar on a terminal."""
    from tqdm import tqdm

    _imagehash()  # a missing package is reported here and not in a worker
    workers = choose_workers(workers, device="")  # not "cpu": no network needs the cores
    loader: Any = DataLoader(paths, batch_size=16, num_workers=workers, collate_fn=_facts_or_errors)  # type: ignore[arg-type]
    batches = tqdm(loader, unit=" images", unit_scale=16, disable=None)
    return [facts for batch in batches for facts in batch]


def _facts_or_errors(paths: Sequence[Any]) -> list[ImageFacts | ImageError]:
    found: list[ImageFacts | ImageError] = []
    for path in paths:
        try:
            found.append(image_facts(path))
        except ImageError as error:
            found.append(error)
    return found


def image_facts(path: Any) -> ImageFacts:
    """The facts of an image; a JPEG is decoded at reduced size. ImageError if it cannot be read."""
    image = open_image(path, size_hint=HASH_SIDE)
    with image_errors(path), open_file(path) as file:
        data = file.read()
    with Image.open(io.BytesIO(data)) as header:
        (width, height), turned = header.size, header.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    bits = _imagehash().phash(image).hash.flatten()
    colours = np.asarray(image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX))
    number = int.from_bytes(np.packbits(bits).tobytes(), "little")
    return ImageFacts(width, height, turned, hashlib.blake2b(data, digest_size=16).digest(), number, colours)


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError:
        hint = "pip install 'captioner[inspect]', or use --no_read_images"
        raise UserError(f"images are compared with imagehash: {hint}") from None
    return imagehash


def _size_statistics(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Quantiles of width and height, and the five commonest sizes; empty without images."""
    if not sizes:
        return {}
    widths, heights = zip(*sizes, strict=True)
    commonest = [[*size, count] for size, count in Counter(sizes).most_common(5)]
    return {"width": _quantiles(widths), "height": _quantiles(heights), "commonest": commonest}


def _image_findings(split: InspectedSplit, images: Sequence[tuple[Example, ImageFacts | ImageError]]) -> list[Finding]:
    bad, wrong, small, stretched = [], [], [], []
    for example, facts in images:
        if isinstance(facts, ImageError):
            bad.append(str(facts))
            continue
        size = (facts.width, facts.height)
        line = f"{example.name}: {size[0]} × {size[1]}"
        declared = split.declared.get(example.image_id, size)
        if declared not in ([size, size[::-1]] if facts.turned else [size]):
            wrong.append(
                f"{example.name}: {declared[0]} × {declared[1]} in the annotations, {size[0]} × {size[1]} in the file"
            )
        if min(size) < SMALL:
            small.append(line)
        elif max(size) > STRETCHED * min(size):
            stretched.append(line)
    return [
        Finding("unreadable", f"{split.name}: images that cannot be read", bad),
        Finding("wrong_size", f"{split.name}: images of another size than the annotations say", wrong),
        Finding("small", f"{split.name}: very small images, a side below {SMALL} pixels", small),
        Finding("stretched", f"{split.name}: very long images, over {STRETCHED:g} times as long as wide", stretched),
    ]


def _duplicate_groups(images: Sequence[_Image], distance: int) -> list[list[_Image]]:
    if not images:
        return []
    digests = [image.facts.digest for image in images]
    hashes = np.array([image.facts.hash for image in images], dtype=np.uint64)
    colours = np.stack([image.facts.colours for image in images])
    return [[images[i] for i in group] for group in group_duplicates(digests, hashes, colours, distance)]


def _duplicate_finding(kind: str, heading: str, groups: Sequence[Sequence[_Image]]) -> Finding:
    lines = []
    for group in groups:
        how = "same file" if len({image.facts.digest for image in group}) == 1 else "near duplicate"
        lines.append(" = ".join(f"{image.split}/{image.example.name}" for image in group) + f" ({how})")
    shown = [[(image.split, image.example.name, image.example.path) for image in group] for group in groups]
    return Finding(kind, heading, lines, images=shown)


def _name_findings(splits: Sequence[InspectedSplit], same_image: set[tuple[str, Any]], compared: bool) -> list[Finding]:
    """File names and ids that several splits have for different images.

    `same_image`: (split, id) of images known to be in several splits; `compared`: the images were read.
    """
    names: dict[str, list[str]] = {}  # file name → the splits that have it
    ids: dict[Any, list[str]] = {}
    for split in splits:
        for example in split.examples:
            if (split.name, example.image_id) not in same_image:
                names.setdefault(example.name, []).append(split.name)
                ids.setdefault(example.image_id, []).append(split.name)
    different = "of different images" if compared else "(the images were not compared)"
    findings = []
    for kind, what, where in (("same_name", "file names", names), ("same_id", "image ids", ids)):
        lines = [f"{key}: {', '.join(found)}" for key, found in where.items() if len(set(found)) > 1]
        serious = kind == "same_name" and not compared
        findings.append(Finding(kind, f"{what} in several splits {different}", lines, serious))
    return findings
