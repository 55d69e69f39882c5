"""Files of results, one caption per image, and the images that they belong to."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.data.annotations import ONE_CAPTION_KEYS, caption_rows, clean_caption, read_json_or_lines
from captioner.errors import UserError
from captioner.files import ID


def read_results(path: Path) -> dict[ID, str]:
    """One caption for each image, by the name of the image in the file; :func:`match_results` finds its id.

    Reads COCO results, [{"image_id", "caption"}], with these or the other usual keys, bare, as JSON Lines
    (``captioner predict --format jsonl``) or in an object ({"results": […]}), and {"id": "caption"}. Of a list of
    captions the first is taken. An image may come again with the same caption.

    Raises:
        UserError: not such a file, an empty one, or an image with two different captions.
    """
    expected = 'COCO results: expected a list of {"image_id", "caption"}, {"id": "caption"}'
    results: dict[ID, str] = {}
    for image, texts, _ in caption_rows(path, read_json_or_lines(path), "result", expected, [ONE_CAPTION_KEYS]):
        text = clean_caption(texts[0])
        if results.setdefault(image, text) != text:
            both = f"{results[image]!r} and as {text!r}"
            raise UserError(f"{path}: image {image!r} comes twice, as {both}; keep one caption")
    return results


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
    images = _ImageNames(references, names or {})
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
        if image in images.names:
            first_by.setdefault(kind, result)
        if found.setdefault(image, caption) != caption:
            both = f"as {found[image]!r} and as {caption!r}"
            raise UserError(f"{where}: image {image!r} comes twice, {both} ({result!r}); keep one caption")
    if len(first_by) > 1:
        some = " and ".join(f"some by {kind} (e.g. {result!r})" for kind, result in first_by.items())
        raise UserError(f"{where}: names images in two ways, {some}; use one of them throughout")
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
        for image in references:
            name = names.get(image, image)
            if isinstance(name, str):
                path = _with_slashes(name)
                self.paths.setdefault(path, []).append(image)
                self.base_names.setdefault(posixpath.basename(path), []).append(image)

    def find(self, result: ID) -> tuple[str, list[ID]]:
        """Whether a result is named by "id" or "file name", and the ids of the images that it fits.

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
        return "file name", self.base_names.get(parts[-1], []) if fits is None else fits


def _with_slashes(name: str) -> str:
    """A normalised path with / between folders."""
    return posixpath.normpath(name.replace("\\", "/"))
