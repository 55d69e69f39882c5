"""What the readers of every layout share: entries, problems, the names of keys, columns and splits."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data.shards import Member
from captioner.errors import UserError
from captioner.files import ID, json_type

# Keys of JSON objects and names of columns; where several are present, the first counts.
ID_KEYS = ("image_id", "cocoid", "img_id", "imgid")
FILE_KEYS = ("file_name", "filename", "image_path", "image_name", "filepath", "image", "img", "file", "path")
CAPTION_KEYS = ("captions", "caption", "text", "texts", "sentences", "sentence", "comment", "raw")

SPLIT_NAMES = (("train", "restval"), ("val", "validation", "valid", "dev"), ("test",))  # each group is one split


@dataclass(frozen=True)
class Entry:
    """An image as an annotations file lists it; it may not exist.

    image_id: the file's own, or the number of the image in the file, from 0.
    where: file and line, for messages.
    names: the paths it may have below the folder of the images, the likeliest first.
    captions: as in the file, some maybe blank.
    image: the image itself where the layout contains it; None in a sample of a shard without an image.
    """

    image_id: ID
    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    image: Member | None = None


class Problem(NamedTuple):
    """A mistake in the data: its kind, for counting, and a message of one line."""

    kind: str
    message: str


class Entries(NamedTuple):
    """The entries of a file in its order, and the problems of what is not among them."""

    entries: list[Entry]
    problems: list[Problem]


def first_key(keys: Iterable[str], present: Container[str]) -> str | None:
    """The first of the keys that is present."""
    return next((key for key in keys if key in present), None)


def split_names(split: str) -> tuple[str, ...]:
    """All names of a split, the given one first: "val" → ("val", "validation", "valid", "dev")."""
    return (split, *(name for group in SPLIT_NAMES if split in group for name in group if name != split))


def in_split(path: Path, split: str, splits: Sequence[Any]) -> list[bool]:
    """Whether each image belongs to the split; `splits` are those of the images.

    Raises:
        UserError: none does.
    """
    names = split_names(split)
    mine = [one in names for one in splits]
    if not any(mine):
        there = ", ".join(sorted({str(one) for one in splits}))
        option = "--split, --data.train_split or --data.val_split"
        raise UserError(f"{path}: nothing of the split {split!r}; there is {there}: choose one by {option}")
    return mine


def caption_list(where: str, value: Any) -> list[str]:
    """One caption or a list of them, each a string or an object with a `caption`.

    Raises:
        UserError: anything else; the message begins with `where`.
    """
    values = value if isinstance(value, list) else [value]
    texts: list[Any] = [one.get("caption") if isinstance(one, dict) else one for one in values]
    if not texts:
        raise UserError(f"{where} is an empty list, expected a caption")
    for text in texts:
        if not isinstance(text, str):
            verb = "has" if isinstance(value, list) else "is"
            raise UserError(f"{where} {verb} {json_type(text)}, expected a string or a list of strings")
    return texts
