"""The entries of an annotations file, the usual names of their fields, and captions in cells and lists."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from captioner.data.addresses import StoredImage
from captioner.errors import UserError
from captioner.files import json_type

# Keys of JSON objects and names of columns; where several are present, the first is used.
ID_KEYS = ("image_id", "cocoid", "img_id", "imgid")
FILE_KEYS = ("file_name", "filename", "image_path", "image_name", "filepath", "image", "img", "file", "path")
CAPTION_KEYS = ("captions", "caption", "text", "texts", "sentences", "sentence", "comment", "raw", "suffix")

ITEM_KEYS = ("caption", "raw", "sentence", "text", "generated_text")  # of an object in a list of captions


@dataclass(frozen=True)
class Entry:
    """An image as an annotations file lists it; it may not exist."""

    image_id: Any  # the file's own, or the number of the image in the file, from 0; of a row of a table, None instead
    where: str  # file and line, for messages
    names: tuple[str, ...]  # its possible paths below the folder of the images, the likeliest first
    captions: tuple[str, ...]  # as in the file, some maybe blank
    image: StoredImage | None = None  # where the format contains it; a sample of a shard may have none


class Problem(NamedTuple):
    """A problem in the data: its kind, for counting, and a message of one line."""

    kind: str
    message: str


class Entries(NamedTuple):
    """The entries of a file in its order, and the problems of the entries left out."""

    entries: list[Entry]
    problems: list[Problem]


def first_key(keys: Iterable[str], present: Container[str]) -> str | None:
    """The first of the keys that is present."""
    return next((key for key in keys if key in present), None)


def captions_in_cell(where: str, cell: Any) -> tuple[str, ...]:
    """The captions in a cell: as :func:`caption_list` takes them, a list written as a string, or none."""
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        for parse in (json.loads, ast.literal_eval):  # pandas writes Python's lists
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = parse(cell)
                if isinstance(found, list) and all(isinstance(one, str) for one in found):
                    return tuple(found)
    return () if cell is None or cell == [] else tuple(caption_list(where, cell))


class CaptionError(UserError):
    """A caption is no text; such an image can be skipped."""


def caption_list(where: str, value: Any) -> list[str]:
    """One caption or a list of them, each a string or an object with one under ITEM_KEYS; messages begin with `where`.

    CaptionError if one is no text.
    """
    values = value if isinstance(value, list) else [value]
    values = [one[key] if isinstance(one, dict) and (key := first_key(ITEM_KEYS, one)) else one for one in values]
    values = [text for one in values for text in (one if isinstance(one, list) else [one])]
    if not values:
        raise CaptionError(f"{where} is an empty list, expected a caption")
    for text in values:
        if not isinstance(text, str):
            verb = "has" if isinstance(value, list) else "is"
            raise CaptionError(f"{where} {verb} {json_type(text)}, expected a string or a list of strings")
    return values
