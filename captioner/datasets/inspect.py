"""What a data set is like and what is wrong with it: captions, words, images, duplicates, splits that overlap."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from captioner.config import DataConfig
from captioner.data.annotations import Example, read_examples
from captioner.data.formats import detect_format
from captioner.data.images import ORIENTATION, ImageError, image_errors, open_file, open_image
from captioner.data.references import read_references
from captioner.data.vocabulary import tokenize
from captioner.datasets.duplicates import group_duplicates
from captioner.devices import choose_workers
from captioner.errors import UserError
from captioner.files import read_json

SIDE = 64  # pixels of the short side that are enough for a hash
COLOURS = 8  # side of the very small image that tells colours
SMALL, STRETCHED = 64, 4.0  # pixels of the short side below which, and long ÷ short side above which, an image is odd
MIN_COUNTS = range(1, 11)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class InspectedSplit:
    """One split of a data set, as it was read.

    declared: (width, height) in pixels by image id, where the annotations say it.
    """

    name: str
    path: str
    format: str
    examples: list[Example]
    skipped: list[str]
    declared: dict[Any, tuple[int, int]]


@dataclass(frozen=True)
class Finding:
    """Something to know about the data: a heading, and a line for each case.

    images: for images that are the same, the (split, file, path) of each group.
    serious: a warning, rather than a note.
    """

    kind: str
    heading: str
    lines: list[str]
    serious: bool = True
    images: list[list[tuple[str, str, Any]]] | None = None


class ImageFacts(NamedTuple):
    """What one look at an image says: its stored size, how it is turned, and what it looks like."""

    width: int
    height: int
    turned: bool
    digest: bytes
    hash: int
    colours: np.ndarray


def read_split(
    name: str,
    path: str,
    images: Path | None = None,
    split: str = "train",
    columns: str | None = None,
    listed: str | None = None,
    images_needed: bool = True,
) -> InspectedSplit:
    """Read a split, leaving out and noting what is bad.

    Args:
        name: what to call it.
        path: annotations, folder or shards, as :func:`captioner.data.annotations.read_examples` takes them.
        images: the folder of images, where the layout needs one; a captions JSON can do without if not
            `images_needed`.
        split, columns, listed: as in :func:`captioner.data.annotations.read_examples`.
        images_needed: the image files must exist.

    Raises:
        UserError: it cannot be read, or nothing is left.
    """
    layout = detect_format(path).name
    if layout == "coco" and images is None and not images_needed:
        references, files = read_references(Path(path), listed=listed)
        named = [(image, str(files.get(image, image)), tuple(texts)) for image, texts in references.items()]
        return InspectedSplit(
            name, path, layout, [Example(i, Path(file), texts, file) for i, file, texts in named], [], {}
        )
    examples, skipped = read_examples(path, images, split, columns=columns, listed=listed, skip_bad=True)
    return InspectedSplit(name, path, layout, examples, skipped, _declared(Path(path)) if layout == "coco" else {})


def _declared(path: Path) -> dict[Any, tuple[int, int]]:
    """Sizes of a COCO file; of those images that have one."""
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in read_json(path)["images"]}
    return {image: size for image, size in sizes.items() if all(isinstance(side, int) for side in size)}


def inspect(
    splits: Sequence[InspectedSplit], read_images: bool = True, workers: int = -1, distance: int = 4
) -> dict[str, Any]:
    """Look at a data set.

    Args:
        splits: one or more; the words of the others are compared with those of the first.
        read_images: look at the read_images, too.
        workers: processes that decode them; -1: one a core, up to 8.
        distance: bits of 64 in which the perceptual hashes of one image may differ.

    Returns:
        `splits`: for each, plain numbers (see the keys); `findings`: a list of :class:`Finding`, warnings first.

    Raises:
        UserError: imagehash is not there.
    """
    findings, numbers = [], []
    first = Counter(_words(splits[0]))
    said = {" ".join(tokenize(caption)) for example in splits[0].examples for caption in example.captions}
    for split in splits:
        numbers.append(_captions(split, first, said, split is splits[0]))
        findings += _caption_findings(split)
    looks: list[list[ImageFacts | ImageError]] = []
    if read_images:
        every = look_at([example.path for split in splits for example in split.examples], workers)
        for split, number in zip(splits, numbers, strict=True):
            looks.append(every[: len(split.examples)])
            every = every[len(split.examples) :]
            number["sizes"] = _sizes(looks[-1])
            findings += _image_findings(split, looks[-1])
    findings += _same(splits, looks, distance)
    return {"splits": numbers, "findings": sorted((f for f in findings if f.lines), key=lambda f: not f.serious)}


def _words(split: InspectedSplit) -> Iterable[str]:
    return (word for example in split.examples for caption in example.captions for word in tokenize(caption))


def _captions(split: InspectedSplit, first: Counter[str], said: set[str], is_first: bool) -> dict[str, Any]:
    """The numbers of a split's captions; `first` counts the words of the first split, `said` are its captions."""
    captions = [tokenize(caption) for example in split.examples for caption in example.captions]
    lengths = np.array([len(caption) for caption in captions])
    counts = Counter(_words(split))
    total = max(1, counts.total())

    def covered(known: Counter[str], count: int) -> float:
        return sum(n for word, n in counts.items() if known[word] >= count) / total

    return {
        "name": split.name,
        "first": is_first,
        "path": split.path,
        "format": split.format,
        "images": len(split.examples),
        "captions": len(captions),
        "captions_per_image": _histogram(len(example.captions) for example in split.examples),
        "caption_words": {
            "mean": float(lengths.mean()),
            "quantiles": {str(q): float(np.quantile(lengths, q, method="nearest")) for q in QUANTILES},
            "histogram": _histogram(lengths.tolist()),
        },
        "tokens": counts.total(),
        "vocabulary": [
            {
                "min_count": count,
                "words": sum(n >= count for n in counts.values()),
                "coverage": covered(counts, count),
                "coverage_by_first": covered(first, count),
            }
            for count in MIN_COUNTS
        ],
        "commonest": counts.most_common(10),
        "captions_also_in_first": sum(" ".join(caption) in said for caption in captions),
    }


def _histogram(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))


def _caption_findings(split: InspectedSplit) -> list[Finding]:
    empty, again, long = [], [], []
    longest = DataConfig.max_length
    for example in split.examples:
        name, words = example.name, [tokenize(caption) for caption in example.captions]
        empty += [f"{name}: {text!r}" for text, each in zip(example.captions, words, strict=True) if not each]
        long += [f"{name}: {len(each)} words" for each in words if len(each) > longest]
        if len({tuple(each) for each in words}) < len(words):
            again.append(name)
    return [
        Finding("skipped", f"{split.name}: left out, as training does with skip_bad_images", split.skipped),
        Finding("no_words", f"{split.name}: captions without a word", empty),
        Finding("repeated_captions", f"{split.name}: images with the same caption twice", again, serious=False),
        Finding("long_captions", f"{split.name}: captions of more than {longest} words, which are cut", long, False),
    ]


def look_at(paths: Sequence[Any], workers: int = -1) -> list[ImageFacts | ImageError]:
    """Look at many images, in several processes, with a progress bar on a terminal."""
    from tqdm import tqdm

    imagehash()  # says here, not in a worker, that it is missing
    workers = choose_workers(workers, device="")  # nothing else needs the cores
    loader: Any = DataLoader(_Looks(paths), batch_size=16, num_workers=workers, collate_fn=list)
    found: list[ImageFacts | ImageError] = []
    with tqdm(total=len(paths), unit=" images", disable=None) as bar:
        for batch in loader:
            found += batch
            bar.update(len(batch))
    return found


class _Looks(Dataset):
    def __init__(self, paths: Sequence[Any]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> ImageFacts | ImageError:
        try:
            return look(self.paths[i])
        except ImageError as error:
            return error


def look(path: Any) -> ImageFacts:
    """Look at an image: JPEGs are decoded at reduced size.

    Raises:
        ImageError: it cannot be read.
    """
    image = open_image(path, size_hint=SIDE)  # says in one line what is wrong
    with image_errors(path), open_file(path) as file:
        data = file.read()
    with Image.open(io.BytesIO(data)) as header:
        (width, height), turned = header.size, header.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    bits = imagehash().phash(image).hash.flatten()
    colours = np.asarray(image.resize((COLOURS, COLOURS), Image.Resampling.BOX))
    number = int.from_bytes(np.packbits(bits).tobytes(), "little")
    return ImageFacts(width, height, turned, hashlib.blake2b(data, digest_size=16).digest(), number, colours)


def imagehash() -> Any:
    """The package.

    Raises:
        UserError: it is not there.
    """
    try:
        import imagehash as package
    except ImportError:
        raise UserError(
            "images are compared with imagehash: pip install 'captioner[inspect]', or use --no_read_images"
        ) from None
    return package


def _sizes(looks: Sequence[ImageFacts | ImageError]) -> dict[str, Any]:
    """Quantiles of the width and height of the images that can be read, and the commonest sizes."""
    sizes = [(look.width, look.height) for look in looks if isinstance(look, ImageFacts)]
    if not sizes:
        return {}
    sides = np.array(sizes)
    found: dict[str, Any] = {
        name: {str(q): float(np.quantile(sides[:, i], q, method="nearest")) for q in QUANTILES}
        for i, name in enumerate(("width", "height"))
    }
    found["commonest"] = [[*size, count] for size, count in Counter(sizes).most_common(5)]
    return found


def _image_findings(split: InspectedSplit, looks: Sequence[ImageFacts | ImageError]) -> list[Finding]:
    bad, wrong, small, stretched = [], [], [], []
    for example, seen in zip(split.examples, looks, strict=True):
        name = example.name
        if isinstance(seen, ImageError):
            bad.append(str(seen))
            continue
        size = (seen.width, seen.height)
        told = split.declared.get(example.image_id, size)
        if told not in ([size, size[::-1]] if seen.turned else [size]):
            wrong.append(f"{name}: {told[0]} × {told[1]} in the annotations, {size[0]} × {size[1]} in the file")
        if min(size) < SMALL:
            small.append(f"{name}: {size[0]} × {size[1]}")
        elif max(size) > STRETCHED * min(size):
            stretched.append(f"{name}: {size[0]} × {size[1]}")
    return [
        Finding("unreadable", f"{split.name}: images that cannot be read", bad),
        Finding("wrong_size", f"{split.name}: images of another size than the annotations say", wrong),
        Finding("small", f"{split.name}: very small images, a side below {SMALL} pixels", small),
        Finding("stretched", f"{split.name}: very long images, {STRETCHED:g} times as long as wide", stretched),
    ]


def _same(
    splits: Sequence[InspectedSplit], looks: Sequence[Sequence[ImageFacts | ImageError]], distance: int
) -> list[Finding]:
    """Images that come several times, within a split or in several; then names and ids that do."""
    seen = [
        (split, example, look)
        for split, part in zip(splits, looks, strict=False)  # none without images
        for example, look in zip(split.examples, part, strict=True)
        if isinstance(look, ImageFacts)
    ]
    digests = [look.digest for _, _, look in seen]
    hashes = np.array([look.hash for _, _, look in seen], dtype=np.uint64)
    colours = np.stack([look.colours for _, _, look in seen]) if seen else np.empty((0, 1), dtype=np.uint8)
    found = group_duplicates(digests, hashes, colours, distance) if seen else []
    findings, across = [], [group for group in found if len({seen[i][0].name for i in group}) > 1]

    def same(kind: str, heading: str, group_list: list[list[int]]) -> Finding:
        images = [[(seen[i][0].name, seen[i][1].name, seen[i][1].path) for i in g] for g in group_list]
        lines = []
        for group, named in zip(group_list, images, strict=True):
            how = "the same file" if len({digests[i] for i in group}) == 1 else "to the eye"
            lines.append(" = ".join(f"{name}/{file}" for name, file, _ in named) + f" ({how})")
        return Finding(kind, heading, lines, images=images)

    findings.append(same("overlap", "images in several splits", across))
    for split in splits:
        inside = [[i for i in group if seen[i][0] is split] for group in found]
        inside = [group for group in inside if len(group) > 1]
        findings.append(same("duplicates", f"{split.name}: images that come more than once", inside))

    known = {(seen[i][0].name, seen[i][1].image_id) for group in across for i in group}
    places: dict[str, list[str]] = {}  # file name → the splits that have it, as another image
    ids: dict[Any, list[str]] = {}
    for split in splits:
        for example in split.examples:
            if (split.name, example.image_id) not in known:
                places.setdefault(example.name, []).append(split.name)
                ids.setdefault(example.image_id, []).append(split.name)
    different = "of images that differ" if looks else "(the images were not looked at)"
    for kind, what, where in (("same_name", "file names", places), ("same_id", "image ids", ids)):
        lines = [f"{key}: {', '.join(names)}" for key, names in where.items() if len(set(names)) > 1]
        serious = kind == "same_name" and not looks
        findings.append(Finding(kind, f"{what} in several splits {different}", lines, serious))
    return findings
