"""Statistics and problems of a data set: captions, words, images, duplicates, splits that overlap."""

from __future__ import annotations

import hashlib
import heapq
import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from captioner.config import DataConfig
from captioner.data.addresses import local_data_set
from captioner.data.annotations import Example, read_examples, read_references
from captioner.data.formats import detect_format, has_splits
from captioner.data.images import ORIENTATION, ImageError, image_errors, open_file, open_image
from captioner.data.vocabulary import NO_SPACES, has_no_spaces, tokenize
from captioner.datasets.duplicates import group_duplicates
from captioner.devices import choose_workers, needed_workers
from captioner.errors import UserError, counted, install_hint
from captioner.files import read_json

BATCH = 16  # images that a worker process reads together
HASH_SIDE = 64  # pixels of the short side that are enough for a perceptual hash
COLOUR_SIDE = 8  # side in pixels of the thumbnails whose colours are compared
SMALL = 64  # an image with a shorter side is reported as very small
STRETCHED = 4.0  # an image more than this many times as long as wide is reported as very long
MIN_COUNTS = range(1, 11)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

SHOWN = 6  # captions or images of each extreme that are shown

Captions = list[list[list[str]]]  # the words of each caption of each image


@dataclass(frozen=True)
class InspectedSplit:
    """One split of a data set."""

    name: str
    path: str
    format: str
    examples: list[Example]
    skipped: list[str]
    declared: dict[Any, tuple[int, int]]  # (width, height) by image id, where the annotations have them


@dataclass(frozen=True)
class Finding:
    """One kind of problem or peculiarity: a heading, and a line for each case."""

    kind: str
    heading: str
    lines: list[str]
    serious: bool = True  # a warning, not a note
    images: list[list[tuple[str, str, Any]]] | None = None  # (split, file, path) of each image of each duplicate group


class InspectedImage(NamedTuple):
    """A readable image of a split: its stored size, whether EXIF turns it by 90°, and its hashes and colours."""

    split: str
    example: Example
    width: int
    height: int
    turned: bool
    digest: bytes  # of the file
    hash: int  # 64-bit pHash
    colours: np.ndarray  # (COLOUR_SIDE, COLOUR_SIDE, 3) uint8


class ShownImage(NamedTuple):
    """An image to look at: why it is shown, captions of it, and words of them to mark."""

    name: str
    path: Any
    captions: Sequence[str]
    note: str = ""
    marked: frozenset[str] = frozenset()


def read_split(
    name: str,
    path: str,
    images: Path | None,
    split: str | None,
    columns: str | None,
    listed: str | None,
    images_needed: bool,
) -> InspectedSplit:
    """Read a split, named `name` in the report, by default that of this name; bad entries are listed in `skipped`.

    The other arguments are those of :func:`captioner.data.annotations.read_examples`. Unless `images_needed`, a COCO
    file can be read without its folder of images.
    """
    path = str(local_data_set(path))
    layout = detect_format(path)
    format_name, split = layout.name, split or (name if has_splits(path, layout) else "val")
    if format_name == "coco" and images is None and not images_needed:
        references, files = read_references(Path(path), listed=listed)
        names = {image: str(files.get(image, image)) for image in references}
        examples = [Example(i, Path(names[i]), tuple(texts), names[i]) for i, texts in references.items()]
        return InspectedSplit(name, path, format_name, examples, [], {})
    examples, skipped = read_examples(path, images, split, columns=columns, listed=listed, skip_bad=True)
    entries = read_json(Path(path))["images"] if format_name == "coco" else []
    sizes = {entry["id"]: (entry.get("width"), entry.get("height")) for entry in entries}
    declared = {image: size for image, size in sizes.items() if all(isinstance(side, int) for side in size)}
    return InspectedSplit(name, path, format_name, examples, skipped, declared)


def inspect(
    splits: Sequence[InspectedSplit],
    read_images: bool = True,
    workers: int = -1,
    distance: int = 4,
    samples: int = 24,
    seed: int = 0,
) -> dict[str, Any]:
    """Plain numbers of each split (`splits`), a list of :class:`Finding`, warnings first (`findings`), and images to
    look at (`shown`: name of the split, heading, images): `samples` drawn with `seed`, and extremes.

    The words of the other splits are compared with those of the first. With `read_images`, `workers` processes decode
    the images (-1: one per core, at most 8), to find unreadable ones and duplicates: images whose perceptual hashes
    differ in at most `distance` of their 64 bits.
    """
    tokens = [[[tokenize(caption) for caption in each.captions] for each in split.examples] for split in splits]
    reports, findings, shown = [], [], []
    for split, captions in zip(splits, tokens, strict=True):
        about = {"name": split.name, "first": split is splits[0], "path": split.path, "format": split.format}
        reports.append({**about, **_caption_statistics(captions, tokens[0])})
        findings += _caption_findings(split, captions)
        shown += [(split.name, *each) for each in _shown_captions(split.examples, captions, samples, seed)]
    images: list[InspectedImage] = []
    if read_images:
        for split, report in zip(splits, reports, strict=True):
            readable, errors = _read_images(split, workers)
            findings += _image_findings(split, readable, errors)
            report["sizes"] = _size_statistics([(image.width, image.height) for image in readable])
            images += readable
            shown += [(split.name, *each) for each in _shown_sizes(readable)]
    groups = _duplicate_groups(images, distance)
    shared = [group for group in groups if len({image.split for image in group}) > 1]
    findings.append(_duplicate_finding("overlap", "images in several splits", shared))
    for split in splits:
        repeated = [[image for image in group if image.split == split.name] for group in groups]
        heading = f"{split.name}: images that occur more than once"
        findings.append(_duplicate_finding("duplicates", heading, [group for group in repeated if len(group) > 1]))
    same_image = {(image.split, image.example.image_id) for group in shared for image in group}
    findings += _name_findings(splits, same_image, read_images)
    found = sorted((f for f in findings if f.lines), key=lambda f: not f.serious)
    order = [split.name for split in splits]
    shown = sorted((each for each in shown if each[-1]), key=lambda each: order.index(each[0]))
    return {"splits": reports, "findings": found, "shown": shown}


def _shown_captions(
    examples: Sequence[Example], captions: Captions, samples: int, seed: int
) -> list[tuple[str, list[ShownImage]]]:
    """Headings and images: a random sample, and the longest, shortest and rarest captions, one of an image."""
    drawn = sorted(random.Random(seed).sample(range(len(examples)), min(samples, len(examples))))
    counts = Counter(word for each in captions for caption in each for word in caption)
    once = {word for word, count in counts.items() if count == 1}
    every = [(i, n, words) for i, each in enumerate(captions) for n, words in enumerate(each)]
    longest = heapq.nlargest(SHOWN, every, key=lambda each: len(each[2]))
    shortest = heapq.nsmallest(SHOWN, every, key=lambda each: len(each[2]))
    rarest = heapq.nlargest(2 * SHOWN, every, key=lambda each: len(once & set(each[2])))

    def show(i: int, n: int, note: str, marked: Iterable[str] = ()) -> ShownImage:
        example = examples[i]
        return ShownImage(example.name, example.path, [example.captions[n]], note, frozenset(marked))

    return [
        ("Random samples", [ShownImage(examples[i].name, examples[i].path, examples[i].captions) for i in drawn]),
        ("Longest captions", [show(i, n, counted(len(words), "word")) for i, n, words in longest]),
        ("Shortest captions", [show(i, n, counted(len(words), "word")) for i, n, words in shortest]),
        (
            "Captions with the most words that occur once",
            [show(i, n, counted(len(found), "rare word"), found) for i, n, w in rarest if (found := once & set(w))],
        ),
    ]


def _shown_sizes(images: Sequence[InspectedImage]) -> list[tuple[str, list[ShownImage]]]:
    """A heading and the most elongated, smallest and largest images, unless they are like the median."""
    kinds = {
        "elongated": lambda image: max(image.width, image.height) / min(image.width, image.height),
        "small": lambda image: -min(image.width, image.height),
        "large": lambda image: image.width * image.height,
    }
    shown: dict[tuple[str, Any], ShownImage] = {}
    for kind, size in kinds.items():
        median = sorted(map(size, images))[len(images) // 2] if images else 0
        for image in heapq.nlargest(SHOWN, images, key=size):
            example, note = image.example, f"{kind}, {image.width} × {image.height}"
            if size(image) > median:
                shown.setdefault((image.split, example.image_id), ShownImage(example.name, example.path, [], note))
    return [("Odd sizes", list(shown.values()))]


def _caption_statistics(captions: Captions, first_split: Captions) -> dict[str, Any]:
    """Statistics of the captions of a split, also compared with the words and captions of the first split."""
    each, first = list(chain.from_iterable(captions)), list(chain.from_iterable(first_split))
    lengths = [len(caption) for caption in each]
    counts, first_counts = Counter(chain.from_iterable(each)), Counter(chain.from_iterable(first))
    first_captions = set(map(tuple, first))
    vocabulary = []
    for count in MIN_COUNTS:
        row: dict[str, Any] = {"min_count": count, "words": sum(n >= count for n in counts.values())}
        for key, known in (("coverage", counts), ("coverage_by_first", first_counts)):
            row[key] = sum(n for word, n in counts.items() if known[word] >= count) / max(1, counts.total())
        vocabulary.append(row)
    return {
        "images": len(captions),
        "captions": len(each),
        "captions_per_image": _histogram(map(len, captions)),
        "caption_words": {
            "mean": float(np.mean(lengths)),
            "quantiles": _quantiles(lengths),
            "histogram": _histogram(lengths),
        },
        "tokens": counts.total(),
        "vocabulary": vocabulary,
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
        long += [f"{name}: {counted(len(each), 'word')}" for each in words if len(each) > longest]
        if len(set(map(tuple, words))) < len(words):
            repeated.append(name)
    unspaced = [NO_SPACES] if has_no_spaces(text for each in split.examples for text in each.captions) else []
    remedy = f"--data.max_length {max((len(each) for words in captions for each in words), default=0)} keeps them whole"
    return [
        Finding("no_spaces", f"{split.name}: captions without spaces", unspaced),
        Finding("skipped", f"{split.name}: left out, as training does with skip_bad_images", split.skipped),
        Finding("no_words", f"{split.name}: captions without a word", empty),
        Finding("repeated_captions", f"{split.name}: images with the same caption twice", repeated, serious=False),
        Finding(
            "long_captions",
            f"{split.name}: captions of more than {longest} words, which are cut; {remedy}",
            long,
            False,
        ),
    ]


def _read_images(split: InspectedSplit, workers: int) -> tuple[list[InspectedImage], list[str]]:
    """The readable images and the errors of the others, read in several processes, with a progress bar."""
    try:
        import imagehash  # noqa: F401
    except ImportError:
        hint = f"{install_hint('inspect')}, or use --no_read_images"
        raise UserError(f"images are compared with imagehash: {hint}") from None
    from captioner.progress import Bar

    workers = choose_workers(workers, device="")  # not "cpu": no network needs the cores
    workers = needed_workers(workers, -(-len(split.examples) // BATCH))
    inspect_each = partial(_inspect_images, split.name)
    loader: Any = DataLoader(split.examples, BATCH, num_workers=workers, collate_fn=inspect_each)  # type: ignore[arg-type]
    every = chain.from_iterable(loader)
    found = list(Bar(every, f"images of {split.name}", len(split.examples), batch=BATCH))
    readable = [image for image in found if isinstance(image, InspectedImage)]
    return readable, [str(error) for error in found if isinstance(error, ImageError)]


def _inspect_images(split: str, examples: Sequence[Example]) -> list[InspectedImage | ImageError]:
    found: list[InspectedImage | ImageError] = []
    for example in examples:
        try:
            found.append(_inspect_image(split, example))
        except ImageError as error:
            found.append(error)
    return found


def _inspect_image(split: str, example: Example) -> InspectedImage:
    import imagehash

    image = open_image(example.path, size_hint=HASH_SIDE)
    with image_errors(example.path), open_file(example.path) as file:
        data = file.read()
    with Image.open(io.BytesIO(data)) as header:
        (width, height), turned = header.size, header.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    bits = int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "little")
    colours = np.asarray(image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX))
    return InspectedImage(split, example, width, height, turned, digest, bits, colours)


def _size_statistics(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Quantiles of width and height, and the five commonest sizes; empty without images."""
    if not sizes:
        return {}
    widths, heights = zip(*sizes, strict=True)
    commonest = [[*size, count] for size, count in Counter(sizes).most_common(5)]
    return {"width": _quantiles(widths), "height": _quantiles(heights), "commonest": commonest}


def _image_findings(split: InspectedSplit, images: Sequence[InspectedImage], errors: list[str]) -> list[Finding]:
    wrong, small, stretched = [], [], []
    for image in images:
        size = image.width, image.height
        line = f"{image.example.name}: {image.width} × {image.height}"
        declared = split.declared.get(image.example.image_id, size)
        if declared not in ([size, size[::-1]] if image.turned else [size]):
            about = f"{declared[0]} × {declared[1]} in the annotations, {image.width} × {image.height} in the file"
            wrong.append(f"{image.example.name}: {about}")
        if min(size) < SMALL:
            small.append(line)
        elif max(size) > STRETCHED * min(size):
            stretched.append(line)
    return [
        Finding("unreadable", f"{split.name}: images that cannot be read", errors),
        Finding("wrong_size", f"{split.name}: images whose size differs from the annotations", wrong),
        Finding("small", f"{split.name}: very small images, a side below {SMALL} pixels", small),
        Finding("stretched", f"{split.name}: very long images, over {STRETCHED:g} times as long as wide", stretched),
    ]


def _duplicate_groups(images: Sequence[InspectedImage], distance: int) -> list[list[InspectedImage]]:
    if not images:
        return []
    digests = [image.digest for image in images]
    hashes = np.array([image.hash for image in images], dtype=np.uint64)
    colours = np.stack([image.colours for image in images])
    return [[images[i] for i in group] for group in group_duplicates(digests, hashes, colours, distance)]


def _duplicate_finding(kind: str, heading: str, groups: Sequence[Sequence[InspectedImage]]) -> Finding:
    lines = []
    for group in groups:
        how = "same file" if len({image.digest for image in group}) == 1 else "near duplicate"
        lines.append(" = ".join(f"{image.split}/{image.example.name}" for image in group) + f" ({how})")
    shown = [[(image.split, image.example.name, image.example.path) for image in group] for group in groups]
    return Finding(kind, heading, lines, images=shown)


def _name_findings(splits: Sequence[InspectedSplit], same_image: set[tuple[str, Any]], compared: bool) -> list[Finding]:
    """File names and ids that several splits have for different images.

    `same_image`: (split, id) of images known to be in several splits; `compared`: the images were read.
    """
    names, ids = defaultdict[str, list[str]](list), defaultdict[Any, list[str]](list)  # → the splits that have it
    for split in splits:
        for example in split.examples:
            if (split.name, example.image_id) not in same_image:
                names[example.name].append(split.name)
                ids[example.image_id].append(split.name)
    different = "of different images" if compared else "(the images were not compared)"
    name_lines, id_lines = (
        [f"{key}: {', '.join(found)}" for key, found in where.items() if len(set(found)) > 1] for where in (names, ids)
    )
    return [
        Finding("same_name", f"file names in several splits {different}", name_lines, serious=not compared),
        Finding("same_id", f"image ids in several splits {different}", id_lines, serious=False),
    ]
