"""Reference captions by image id, from any layout of captioned images or from JSON without file names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data.addresses import is_address
from captioner.data.annotations import clean_caption, select_listed
from captioner.data.formats import (
    FILE_KEYS,
    ID_KEYS,
    Format,
    caption_list,
    detect_format,
    first_key,
    is_karpathy,
    read_entries,
)
from captioner.data.shards import are_shards
from captioner.errors import UserError
from captioner.files import ID, IDS, json_type, parse_json, read_text, require_fields

IMAGE_KEYS = (*ID_KEYS, *FILE_KEYS, "id")  # "id" is last, for it may only be the number of the row
ONE_CAPTION_KEYS = ("caption", "captions", "text", "sentence", "prediction", "pred", "generated", "output")
REFERENCE_KEYS = [("references", "captions"), ONE_CAPTION_KEYS]  # the first group with a key in the entry counts
LIST_KEYS = ("results", "predictions", "annotations")  # of an object around the entries


class References(NamedTuple):
    """Captions by image id, at least one each, and file names by image id where the file gives them."""

    captions: dict[ID, list[str]]
    names: dict[ID, str]


def read_references(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    split: str = "val",
    *,
    columns: str | None = None,
    listed: str | os.PathLike | None = None,
) -> References:
    """Read reference captions; no image has to exist.

    Reads all that :func:`captioner.data.annotations.read_examples` reads, with the same options. JSON, or JSON Lines,
    may also be a COCO captions file without file names, {"id": ["caption", …]}, or a list of objects with one or more
    captions each (`captions`, `references`, `caption` …; an image may come several times). Images without a caption,
    blank captions and captions of images that are not listed are left out: they cannot take part in a score.

    Raises:
        UserError: the file is not in such a layout, or no image in it has a caption.
    """
    data = read_json_or_lines(Path(path)) if listed is None and _is_json(path) else None
    is_coco = isinstance(data, dict) and "images" in data
    captions: dict[ID, list[str]] = {}
    names: dict[ID, str] = {}
    if data is None or is_coco:
        layout = Format("karpathy" if is_karpathy(data) else "coco", data) if is_coco else detect_format(path)
        names_needed = listed is not None
        found, _ = read_entries(os.fspath(path), layout, images, split, columns, True, names_needed)
        for entry in select_listed(found, listed).entries:
            captions[entry.image_id] = list(entry.captions)
            if entry.names:
                names[entry.image_id] = entry.names[0]
    else:
        expected = "captions: expected the lists 'images' and 'annotations' of COCO, {\"id\": [\"caption\", …]}, a list"
        for image_id, texts, name in caption_rows(Path(path), data, "reference", expected, REFERENCE_KEYS):
            captions.setdefault(image_id, []).extend(texts)
            if name is not None and name != image_id:
                names[image_id] = name
    captions = {image: [text for text in map(clean_caption, texts) if text] for image, texts in captions.items()}
    captions = {image: texts for image, texts in captions.items() if texts}
    if not captions:
        raise UserError(f"{path}: no image in it has a caption; name a captions file")
    return References(captions, {image: name for image, name in names.items() if image in captions})


def _is_json(path: str | os.PathLike) -> bool:
    """Whether a file is JSON or JSON Lines, by its suffix or else by its first character."""
    text = os.fspath(path)
    others = is_address(text) or are_shards(text) or os.path.isdir(text)
    if others or text.lower().endswith((".csv", ".tsv", ".parquet")):
        return False
    return ".json" in Path(text).suffix.lower() or read_text(Path(text), "text").lstrip()[0] in "[{"


def caption_rows(
    path: Path, data: Any, what: str, expected: str, caption_keys: Sequence[Sequence[str]]
) -> Iterator[tuple[ID, list[str], str | None]]:
    """The image id, captions (one or more) and file name, if any, of each entry of parsed JSON.

    `data` is {"id": "caption" or ["caption", …]}, a list of objects, one such object, or an object around one of these.
    `what` and `expected` are a word for an entry and a description of the file, for messages. Of the groups of
    `caption_keys` the first with a key in the first entry counts, for all entries; an entry has one key of it.
    """
    if isinstance(data, dict):
        wrapped = [key for key in LIST_KEYS if isinstance(data.get(key), list | dict)]
        if len(wrapped) > 1:
            raise UserError(f"{path}: has both {wrapped[0]!r} and {wrapped[1]!r}; keep one")
        if wrapped:
            data = data[wrapped[0]]
        elif first_key(IMAGE_KEYS, data) and any(first_key(group, data) for group in caption_keys):
            data = [data]  # one line of JSON Lines
    if isinstance(data, dict) and data:
        for image, value in data.items():
            yield image, caption_list(f"{path}: image {image!r}", value), None
        return
    if not isinstance(data, list) or not data:
        found = "an empty list" if data == [] else "an empty object" if data == {} else json_type(data)
        raise UserError(f"{path}: not {expected} or JSON Lines, found {found}")

    first = data[0] if isinstance(data[0], dict) else {}
    image_key = first_key(IMAGE_KEYS, first) or "image_id"
    file_key = first_key(FILE_KEYS, first)
    present = [[key for key in group if key in first] for group in caption_keys]
    caption_key, *others = next(filter(None, present), ["caption"])
    if others:
        raise UserError(f"{path}: {what} 0 has both {caption_key!r} and {others[0]!r}; keep one")
    for position, entry in enumerate(data):
        where = f"{what} {position}"
        require_fields(path, where, entry, {image_key: IDS})
        if caption_key not in entry:
            require_fields(path, where, entry, {caption_key: str})
        texts = caption_list(f"{path}: {where}: {caption_key!r}", entry[caption_key])
        name = entry.get(file_key)
        yield entry[image_key], texts, name if isinstance(name, str) else None


def read_json_or_lines(path: Path) -> Any:
    """The content of a JSON file, or the list of the values on the lines of JSON Lines; no key has two values."""
    text = read_text(path)
    try:
        return parse_json(path, text, pairs=_no_contradiction)
    except UserError as error:
        broken: Any = error.__cause__
        more = isinstance(broken, json.JSONDecodeError) and broken.msg == "Extra data"
        if not (more and "\n" not in text[: broken.pos].strip()):  # the first value does not end with its line
            raise
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(path, line, number, _no_contradiction) for number, line in lines if line.strip()]


def _no_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON's pairs; a key may come twice with one value."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        if found[key] != value:
            raise ValueError(f"{key!r} comes twice, as {value!r} and as {found[key]!r}; keep one")
    return found
