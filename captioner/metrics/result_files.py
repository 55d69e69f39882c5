"""Files of results, one caption per image, and the images that they belong to."""

from __future__ import annotations

import math
import posixpath
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.data.annotations import (
    IMAGE_KEYS,
    ONE_CAPTION_KEYS,
    caption_rows,
    clean_caption,
    is_json,
    read_json_or_lines,
    spelling_of,
)
from captioner.data.entries import caption_list, first_key
from captioner.data.formats import find_delimiter, read_table
from captioner.errors import UserError, counted
from captioner.files import ID, read_text


class Place(int):
    """The number of an image among the references, from 0."""


def read_results(path: Path) -> dict[ID, str]:
    """One caption for each image, by the name of the image in the file; :func:`match_results` finds its id.

    Reads COCO results, [{"image_id", "caption"}], with these or the other usual keys, bare, as JSON Lines
    (``captioner predict --format jsonl``) or in an object ({"results": […]}), and {"id": "caption"}; tables with
    names of columns (CSV, TSV, Parquet); and lines of path, tab, caption, as ``captioner predict`` prints. Of a list of
    captions, or of lines with their log-probabilities, the first is taken. An image may come again with the same
    caption. A list without names of images, as of Hugging Face's pipelines, is in the order of the references: its keys
    are :class:`Place`.

    Raises:
        UserError: not such a file, an empty one, or an image with two different captions.
    """
    rows = _table_rows(path)
    if rows is not None:
        first: dict[ID, str] = {}
        for name, caption in rows:
            first.setdefault(name, clean_caption(caption))
        return first
    data = read_json_or_lines(path)
    if nameless := _captions_in_order(path, data):
        return {Place(i): clean_caption(text) for i, text in enumerate(nameless)}
    expected = 'COCO results: expected a list of {"image_id", "caption"}, {"id": "caption"}'
    results: dict[ID, str] = {}
    for image, texts, _ in caption_rows(path, data, "result", expected, [ONE_CAPTION_KEYS]):
        text = clean_caption(texts[0])
        if results.setdefault(image, text) != text:
            both = f"{results[image]!r} and as {text!r}"
            raise UserError(f"{path}: image {image!r} comes twice, as {both}; keep one caption")
    return results


def _table_rows(path: Path) -> list[tuple[str, str]] | None:
    """Image and caption of the rows of a table, or of lines with a tab between them; None for JSON."""
    if is_json(path):
        return None
    lines = [] if path.suffix.lower() == ".parquet" else read_text(path, "results").split("\n")
    cells = [line.split("\t") for line in lines if line.strip()]
    with_scores = all(len(row) == 3 and _is_number(row[2]) for row in cells)
    if cells and find_delimiter(lines[0]) is None and (with_scores or all(len(row) == 2 for row in cells)):
        if not with_scores and len({row[0] for row in cells}) < len({tuple(row) for row in cells}):
            raise UserError(f"{path}: an image comes twice with different captions; keep one")
        return [(row[0], row[1]) for row in cells]
    found = read_table(path, "val").entries
    return [(entry.names[0], text) for entry in found for text in entry.captions[:1]]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _captions_in_order(path: Path, data: Any) -> list[str]:
    """The captions of a list without names of images: strings, or a pipeline's objects or lists of objects."""
    if not isinstance(data, list) or not data:
        return []
    first = data[0][0] if isinstance(data[0], list) and data[0] else data[0]
    pipeline = isinstance(first, dict) and "generated_text" in first and not first_key(IMAGE_KEYS, first)
    if not (isinstance(first, str) or pipeline):
        return []
    return [caption_list(f"{path}: result {i}", each)[0] for i, each in enumerate(data)]


def match_results(
    references: Mapping[Any, Any],
    results: Mapping[Any, str],
    names: Mapping[Any, str] | None = None,
    where: str = "results",
) -> tuple[dict[ID, str], list[ID], list[ID]]:
    """Find the image of each result.

    The name of a result is the id of an image (7 and "7" are the same), or its file name: the whole path, with any
    folders before it, or else the base name.

    Args:
        references: anything by image id.
        results: captions by id or file name.
        names: file names by image id; without one, the id is the file name.
        where: name of the results in an error.

    Returns:
        Captions by image id, in the order of the references; the ids of references without a caption; the names of
        results that fit no image.

    Raises:
        UserError: a result fits several images, some have ids and others file names, or two of one image differ.
    """
    if results and all(isinstance(result, Place) for result in results):
        if len(results) != len(references):
            count = (
                f"{counted(len(results), 'caption')} without names of images, and {counted(len(references), 'image')}"
            )
            raise UserError(f"{where}: {count}: name the image of each")
        print(f"{where}: no names of images: taken in the order of the annotations", file=sys.stderr)
        return dict(zip(references, results.values(), strict=True)), [], []
    images = _ImageNames(references, names or {})
    lenient: dict[str, list[ID]] = {}  # how images are named in another way → those results
    found: dict[ID, str] = {}
    extra: list[ID] = []
    first_by: dict[str, ID] = {}  # "id" or "file name" → the first result with such a name
    for result, caption in results.items():
        kind, fits = images.find(result)
        if len(fits) > 1:
            some = ", ".join(map(repr, fits[:3]))
            raise UserError(f"{where}: {result!r} is the name of {len(fits)} images (ids {some} …); use their ids")
        if not fits:
            extra.append(result)
            continue
        (image,) = fits
        if kind not in ("id", "file name"):
            lenient.setdefault(kind, []).append(result)
            kind = "id" if kind == "padded id" else "file name"
        if image in images.names:
            first_by.setdefault(kind, result)
        if found.setdefault(image, caption) != caption:
            both = f"as {found[image]!r} and as {caption!r}"
            raise UserError(f"{where}: image {image!r} comes twice, {both} ({result!r}); keep one caption")
    if len(first_by) > 1:
        some = " and ".join(f"some by {kind} (e.g. {result!r})" for kind, result in first_by.items())
        raise UserError(f"{where}: names images in two ways, {some}; use one of them throughout")
    for kind, some_results in lenient.items():
        print(
            f"{where}: {counted(len(some_results), 'image')} named by {kind}, such as {some_results[0]!r}",
            file=sys.stderr,
        )
    captions = {image: found[image] for image in references if image in found}
    return captions, [image for image in references if image not in found], extra


class _ImageNames:
    """Images by id and by file name."""

    def __init__(self, references: Mapping[Any, Any], names: Mapping[Any, str]) -> None:
        self.names = names
        self.ids = {str(image): image for image in references}
        if len(self.ids) < len(references):
            twice = next(image for image in references if self.ids[str(image)] != image)
            raise UserError(f"the annotations have image {twice} as a number and as a string; keep one")
        self.paths: dict[str, list[ID]] = {}
        self.base_names: dict[str, list[ID]] = {}
        self.spellings: dict[str, list[ID]] = {}
        self.stems: dict[str, list[ID]] = {}
        for image in references:
            name = names.get(image, image)
            if isinstance(name, str):
                path = _with_slashes(name)
                self.paths.setdefault(path, []).append(image)
                base = posixpath.basename(path)
                self.base_names.setdefault(base, []).append(image)
                self.spellings.setdefault(spelling_of(base), []).append(image)
                self.stems.setdefault(posixpath.splitext(spelling_of(base))[0], []).append(image)

    def find(self, result: ID) -> tuple[str, list[ID]]:
        """How a result is named, "id", "file name" or in another way, and the ids of the images that it fits.

        "data/val/b.jpg" fits the images of the first existing of these file names: data/val/b.jpg, val/b.jpg,
        b.jpg; or else all with the base name b.jpg, such as train/b.jpg.
        """
        if str(result) in self.ids:
            return "id", [self.ids[str(result)]]
        if not isinstance(result, str):
            return "file name", []
        parts = _with_slashes(result).split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        fits = next((self.paths[tail] for tail in tails if tail in self.paths), None)
        if fits is None:
            fits = self.base_names.get(parts[-1])
        if fits is not None:
            return "file name", fits
        base = spelling_of(parts[-1])
        if base in self.spellings:
            return "file name in another spelling", self.spellings[base]
        if base in self.stems:
            return "file name without its ending", self.stems[base]
        number = base.lstrip("0") or "0"
        return "padded id", [self.ids[number]] if base.isdigit() and number in self.ids else []


def _with_slashes(name: str) -> str:
    """A normalised path with / between folders."""
    return posixpath.normpath(name.replace("\\", "/"))
