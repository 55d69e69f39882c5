"""Annotation files to examples, in pure functions."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import UserError


@dataclass(frozen=True)
class Example:
    """One image and what people wrote about it.

    image_id is the file's own name for the image: an int in COCO, and a str is passed through as it stands.
    captions: stripped, never blank, in the order of the file; as many as there are.
    """

    image_id: int
    path: Path
    captions: tuple[str, ...]


def read_coco(
    annotations: Path, images: Path, skip_bad: bool = False, option: str = "--data.skip_bad_images"
) -> tuple[list[Example], list[str]]:
    """Read a COCO captions file (https://cocodataset.org/#format-data, image captioning).

    Args:
        annotations: JSON with the lists `images` (id, file_name) and `annotations` (image_id, caption).
        images: the folder that every file_name is relative to.
        skip_bad: leave out an image that is missing, has no caption or lies outside the folder, a blank caption, and
            captions of an image that is not listed; without it the first of these is an error.
        option: what the user would type to get skip_bad, for the message.

    Returns:
        The examples in the order of `images`, at least one; and what was left out, one line each.

    Raises:
        UserError: a problem as above, a file that is not COCO captions, or an id given twice (whatever skip_bad says).
    """
    listed, captions = _coco(annotations)
    if not os.path.isdir(images):
        raise UserError(f"{images}: no such folder of images; check the path")

    @functools.cache
    def names(folder: str) -> frozenset[str]:
        """The files of one folder, listed once: far cheaper than asking the disk for every image."""
        try:
            with os.scandir(os.path.join(images, folder)) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except (OSError, ValueError):  # no such folder, or a name that none can have
            return frozenset()

    examples: list[Example] = []
    problems: list[tuple[str, str]] = []  # (kind, line)
    for image in listed:
        image_id, file_name = image["id"], image["file_name"]
        where = f"{annotations}: image id {image_id!r}"
        relative = os.path.normpath(file_name)
        folder, name = os.path.split(relative)
        every = captions.pop(image_id, [])
        written = tuple(caption for caption in every if caption)
        if _leaves(relative):
            problems.append(("file name outside the folder", f"{where}: file name {file_name!r} leaves {images}"))
        elif name not in names(folder):
            problems.append(("missing image file", f"{where}: no file {file_name!r} in {images}"))
        elif not written:
            problems.append(("image without a caption", f"{where} ({file_name!r}) has no caption"))
        else:
            examples.append(Example(image_id, Path(images, relative), written))
            if len(written) < len(every):
                problems.append(("image with a blank caption", f"{where} ({file_name!r}) has a blank caption"))
    for image_id in captions:  # what no listed image has taken
        problems.append(("unknown image id", f"{annotations}: captions for image id {image_id!r}, not in its 'images'"))

    if problems and not skip_bad:
        more = Counter(kind for kind, _ in problems[1:])
        kinds = ", ".join(f"{count} × {kind}" for kind, count in more.items())
        also = f" (and {len(problems) - 1} more: {kinds})" if more else ""
        raise UserError(f"{problems[0][1]}{also}; mend it, or use {option} true to skip them")
    if not examples:
        why = f"all are bad, the first: {problems[0][1]}" if problems else "it lists none"
        raise UserError(f"{annotations}: no image to use: {why}")
    return examples, [line for _, line in problems]


def _leaves(relative: str) -> bool:
    """Whether a normalised file name points outside the folder it should be relative to."""
    drive, rest = os.path.splitdrive(relative)
    return bool(drive) or rest.startswith(os.sep) or rest.split(os.sep, 1)[0] == os.pardir


def read_references(annotations: Path) -> dict[int, list[str]]:
    """Captions by image id from a COCO captions file; no image is looked at.

    In the order of `images`. Images without a caption, blank captions and captions of images that are not listed are
    left out: they cannot take part in a score.

    Raises:
        UserError: as read_coco does for the file itself, or nothing is left.
    """
    listed, captions = _coco(annotations, fields={"id": _ID})
    found = {image["id"]: [caption for caption in captions.get(image["id"], []) if caption] for image in listed}
    found = {image_id: written for image_id, written in found.items() if written}
    if not found:
        raise UserError(f"{annotations}: no image in it has a caption; name a captions file")
    return found


def read_results(path: Path) -> dict[int, str]:
    """Captions by image id from a COCO results file: a list of {"image_id", "caption"}, one entry per image.

    Raises:
        UserError: not such a file, an empty list, or an image id given twice.
    """
    data = read_json(path)
    if not isinstance(data, list) or not data:
        found = "an empty list" if data == [] else _kind(data)
        raise UserError(f'{path}: not COCO results: expected a list of {{"image_id", "caption"}}, found {found}')
    results: dict[int, str] = {}
    for position, entry in enumerate(data):
        _check(path, f"result {position}", entry, {"image_id": _ID, "caption": str})
        if entry["image_id"] in results:
            raise UserError(f"{path}: result {position}: image_id {entry['image_id']!r} comes twice; keep one caption")
        results[entry["image_id"]] = entry["caption"]
    return results


_ID = (int, str)


def _coco(path: Path, fields: dict[str, Any] | None = None) -> tuple[list[dict[str, Any]], dict[int, list[str]]]:
    """The checked `images` of a captions file, and stripped captions (maybe blank) by image id, in file order.

    fields: what every image must have; by default an id and a file_name.
    """
    from pycocotools.coco import COCO

    data = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            found = _kind(data) if not isinstance(data, dict) else f"no list {key!r}"
            raise UserError(f"{path}: not COCO captions: expected the lists 'images' and 'annotations', found {found}")

    seen: set[int | str] = set()
    for position, image in enumerate(data["images"]):
        _check(path, f"image {position}", image, fields or {"id": _ID, "file_name": str})
        if image["id"] in seen:
            raise UserError(f"{path}: image id {image['id']!r} comes twice, so its captions are ambiguous; remove one")
        seen.add(image["id"])

    annotations = []
    seen = set()
    for position, entry in enumerate(data["annotations"]):
        _check(path, f"annotation {position}", entry, {"image_id": _ID, "caption": str})
        if entry.get("id") is not None:
            _check(path, f"annotation {position}", entry, {"id": _ID})
            if entry["id"] in seen:
                raise UserError(f"{path}: annotation id {entry['id']!r} comes twice; remove one or number it anew")
            seen.add(entry["id"])
        annotations.append({"id": position, "image_id": entry["image_id"], "caption": entry["caption"].strip()})

    coco = COCO()
    coco.dataset = {"images": data["images"], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return data["images"], {key: [entry["caption"] for entry in group] for key, group in coco.imgToAnns.items()}


def _check(path: Path, what: str, entry: Any, fields: dict[str, Any]) -> None:
    """Raise UserError unless the entry is an object whose fields have the right types (true and false are no ids)."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: expected an object with {', '.join(fields)}, found {_kind(entry)}")
    for key, types in fields.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = "a whole number or a string" if types == _ID else "a string"
            found = f"is {_kind(value)}" if key in entry else "is missing"
            number = entry.get("id", entry.get("image_id"))
            named = f" (id {number!r})" if isinstance(number, _ID) and key != "id" else ""
            hint = "; name a captions file, not instances or keypoints" if key == "caption" else ""
            raise UserError(f"{path}: {what}{named}: {key!r} {found}, expected {wanted}{hint}")


def _kind(value: Any) -> str:
    """JSON's word for a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8, with or without a byte-order mark).

    Raises:
        UserError: one line with the path, and the line and column where the JSON breaks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; write or fetch it again")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise UserError(f"{path}: broken JSON at {where}: {error.msg}; the file may be cut short") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        raise UserError(f"{path}: not JSON that can be read: {str(error).splitlines()[0]}") from error


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all: aside in the same folder (made when missing), then renamed.

    Raises:
        UserError: the file cannot be written there.
    """
    text = json.dumps(data, indent=1) + "\n"
    final = Path(os.path.realpath(path))  # a link stays a link
    aside = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another place or make room") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
