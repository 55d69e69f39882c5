"""Read captions in any format, as examples with their images or as references by image id; filter and clean them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import gc
import itertools
import json
import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from captioner.data.addresses import StoredImage, is_address, local_data_set
from captioner.data.entries import FILE_KEYS, ID_KEYS, Entries, Entry, Problem, caption_list, first_key
from captioner.data.formats import Format, detect_format, is_karpathy, read_entries
from captioner.data.label_tools import is_label_studio, is_llava
from captioner.data.shards import are_shards
from captioner.data.vocabulary import compose
from captioner.errors import UserError
from captioner.files import (
    ID,
    IDS,
    escapes_folder,
    json_type,
    parse_json,
    read_text,
    require_fields,
    text_encoding,
)

MAX_CHARACTERS = 10_000  # of a caption
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

# "id" is last, because it may be only the number of the row; question_id is LLaVA's
IMAGE_KEYS = (*ID_KEYS, *FILE_KEYS, "question_id", "id")
# generated_text is of Hugging Face's pipelines
ONE_CAPTION_KEYS = (
    "caption",
    "captions",
    "generated_text",
    "text",
    "sentence",
    "prediction",
    "pred",
    "generated",
    "output",
)
REFERENCE_KEYS = [
    ("references", "captions"),
    (*ONE_CAPTION_KEYS, "suffix"),
]  # the first group with a key in the entry is used
LIST_KEYS = ("results", "predictions", "annotations")  # of an object around the entries


@dataclass(frozen=True, slots=True)
class Example:
    """An image and its captions.

    image_id: the file's own, an int or a str, or the number of the image in the file, from 0.
    path: a file, an album (a folder), or a file in a shard.
    captions: stripped, never blank, one or more, in the order of the file.
    name: path below the folder of the images; for an image in a shard, the shard and the file in it.
    """

    image_id: Any
    path: Path | StoredImage
    captions: tuple[str, ...]
    name: str = field(default="", compare=False)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Turn garbage collection off inside: it would traverse millions of new objects repeatedly and free nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@gc_paused()
def read_examples(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    split: str = "train",
    *,
    columns: str | None = None,
    listed: str | os.PathLike | None = None,
    skip_bad: bool = False,
    option: str = "--data.skip_bad_images",
    albums: bool = False,
    encoding: str = "",
) -> tuple[list[Example], list[str]]:
    """Read captioned images in any format of docs/data.md.

    Args:
        path: a file, a folder, or an address or pattern of shards.
        images: the folder that file names are relative to. Those of tables, imagefolders and pairs are relative to
            their own folder by default; shards contain the images.
        split: which images, where the format has several splits; "train" of Karpathy's is train and restval.
        columns: "IMAGE,CAPTION", the columns of a table that have other names than the usual ones.
        listed: a file with an image's name on each line: only these are read.
        skip_bad: leave out an image that is missing, has no caption or lies outside the folder, a blank caption, and
            captions of an image that is not listed; otherwise the first of these is an error.
        option: the command-line option for skip_bad, for the message.
        albums: a file name may also be that of a folder or video.
        encoding: of text that is not UTF-8, such as cp1252.

    Returns:
        The examples in the order of the file, at least one; and a line for each entry left out.

    Raises:
        UserError: a problem as above, an unknown format, no such split, no folder of images, an id of two images
            (also with skip_bad), or no example is left.
    """
    path = local_data_set(path)
    with text_encoding(encoding):
        layout = detect_format(path)
        if layout.name in ("coco", "karpathy", "flickr") and images is None:
            option = "--data.train_images, --data.val_images or --images"
            raise UserError(f"{path}: needs the folder of its images; name it with {option}")
        found, folder = read_entries(os.fspath(path), layout, images, split, columns, albums)
        found = _select_listed(found, listed)
    examples, problems = _examples(found, folder, albums)
    if problems and not skip_bad:
        first, *others = problems
        kinds = Counter(problem.kind for problem in others)
        counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        more = f" (and {len(others)} more: {counts})" if others else ""
        raise UserError(f"{first.message}{more}; correct the data, or use {option} to skip them")
    if not examples:
        why = f"all are bad, the first: {problems[0].message}" if problems else "it lists none"
        raise UserError(f"{path}: no image to use: {why}")
    return examples, [problem.message for problem in problems]


def _select_listed(found: Entries, listed: str | os.PathLike | None) -> Entries:
    """The entries whose file name, with or without its folder and suffix, is on a line of the file `listed`."""
    if listed is None:
        return found
    names = dict.fromkeys(line.strip() for line in read_text(Path(listed), "text").splitlines() if line.strip())
    missing, kept = set(names), []
    for entry in found.entries:
        name = entry.names[0]
        matches = {name, posixpath.basename(name), posixpath.splitext(posixpath.basename(name))[0]} & names.keys()
        missing -= matches
        if matches:
            kept.append(entry)
    problems = [problem for problem in found.problems if problem.kind != "unknown image id"]  # may be of other images
    for name in names:
        if name in missing:
            problems.append(Problem("listed image without an entry", f"{listed}: {name!r} is not in the captions"))
    return Entries(kept, problems)


def clean_caption(caption: str) -> str:
    """A caption of at most MAX_CHARACTERS, stripped, that every terminal can show and UTF-8 can encode.

    Lone surrogates and control characters become spaces; line breaks and tabs inside stay.
    """
    caption = caption.strip()[:MAX_CHARACTERS]
    return caption if caption.isprintable() else CONTROLS.sub(" ", caption).strip()


def _examples(found: Entries, folder: Path | None, albums: bool) -> tuple[list[Example], list[Problem]]:
    """The entries with an image and a caption, and the problems of all others; no folder: the images are in shards."""
    files = None if folder is None else _Files(folder, albums)
    examples: list[Example] = []
    problems: list[Problem] = []
    for entry in found.entries:
        name: str | Problem
        if entry.image is not None:
            name = entry.names[0]
        elif files is not None:
            name = files.find(entry)
        else:
            name = Problem("missing image file", f"{entry.where} has no image")
        if isinstance(name, Problem):
            problems.append(name)
            continue
        captions = tuple(filter(None, map(clean_caption, entry.captions)))
        about = f"{entry.where} ({entry.names[0]!r})"
        if not captions:
            problems.append(Problem("image without a caption", f"{about} has no caption"))
            continue
        if len(captions) < len(entry.captions):
            problems.append(Problem("image with a blank caption", f"{about} has a blank caption"))
        path: Path | StoredImage = entry.image or Path(files.folder if files else "", name)
        examples.append(Example(entry.image_id, path, captions, os.path.normpath(name)))
    if files is not None and files.rewritten:
        file, name = next(iter(files.rewritten.items()))
        print(f"{len(files.rewritten)} × file name in another spelling: {name!r} is {file!r}", file=sys.stderr)
    return examples, found.problems + problems


class _Files:
    """The files below a folder (with `albums`, the folders too), found by names that may be written differently."""

    def __init__(self, folder: Path, albums: bool) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of images; check the path")
        self.folder, self.albums = folder, albums
        self._names = functools.cache(self._list)  # one listing is far cheaper than a request for every image
        self.rewritten: dict[str, str] = {}  # by file, the name of an entry that is written in another way

    def _list(self, subfolder: str) -> frozenset[str]:
        """The files in a folder below this one."""
        try:
            with os.scandir(os.path.join(self.folder, subfolder)) as entries:
                return frozenset(entry.name for entry in entries if self.albums or entry.is_file())
        except (OSError, ValueError):  # no such folder, or a name with NUL
            return frozenset()

    def exists(self, path: str) -> bool:
        subfolder, name = os.path.split(path)
        return not escapes_folder(path) and name in self._names(subfolder)

    @functools.cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        """All files by :func:`spelling_of`, of their path below the folder and of their name alone."""
        found: dict[str, list[str]] = {}
        for parent, folders, files in os.walk(self.folder):
            for name in sorted([*files, *(folders if self.albums else ())]):
                path = os.path.relpath(os.path.join(parent, name), self.folder)
                for spelling in {spelling_of(path), spelling_of(name)}:
                    found.setdefault(spelling, []).append(path)
        return found

    def similar(self, name: str) -> list[str]:
        """The files that a name fits which is written differently: the first of its spellings that any file has."""
        parts = spelling_of(name).split("/")
        spellings = (
            ["/".join(parts[first:]) for first in range(len(parts))] if not {"..", "\0"} & {*parts, *name} else []
        )
        spellings += [re.sub(r"^[0-9a-f]{8}-", "", spelling) for spelling in spellings[-1:]]  # of Label Studio
        return next((self._by_spelling[one] for one in spellings if one in self._by_spelling), [])

    def nearest(self, name: str) -> str:
        """``; the nearest is 'dog.jpg'``, or nothing."""
        spelling = spelling_of(name).rsplit("/", 1)[-1]
        close = difflib.get_close_matches(spelling, itertools.islice(self._by_spelling, 20_000), 1, 0.75)
        return f"; the nearest is {self._by_spelling[close[0]][0]!r}" if close else ""

    def find(self, entry: Entry) -> str | Problem:
        """The path below the folder of the image of an entry, or the problem with it."""
        paths = [os.path.normpath(name) for name in entry.names]
        for path in paths:
            if self.exists(path):
                return path
        name = entry.names[0]
        fits = list(dict.fromkeys(path for each in entry.names for path in self.similar(each)))
        if len(fits) == 1:
            if (other := self.rewritten.setdefault(fits[0], name)) != name:
                both = f"{other!r} and {name!r} both fit {fits[0]!r}"
                return Problem("name of another image", f"{entry.where}: {both}: name the files as they are")
            return fits[0]
        if fits:
            some = ", ".join(map(repr, fits[:3]))
            return Problem("name of several files", f"{entry.where}: {name!r} fits {len(fits)} files, {some}: name one")
        if escapes_folder(paths[0]):
            return Problem("file name outside the folder", f"{entry.where}: file name {name!r} leaves {self.folder}")
        return Problem("missing image file", f"{entry.where}: no file {name!r} in {self.folder}{self.nearest(name)}")


def spelling_of(name: str) -> str:
    """A file name without what systems and tools change: slashes, composition, case, percent escapes."""
    path = posixpath.normpath(unquote(name).replace("\\", "/"))
    return compose(path).casefold().strip("/")


# ---- references: captions by image id, without images


class References(NamedTuple):
    """Captions by image id, at least one each, and file names by image id where the file has them."""

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

    Reads all that :func:`read_examples` reads, with the same options. JSON, or JSON Lines, may also be a COCO captions
    file without file names, {"id": ["caption", …]}, or a list of objects with one or more captions each (`captions`,
    `references`, `caption` …; an image may come several times). Images without a caption, blank captions and captions
    of images that are not listed are left out: they cannot be scored.

    Raises:
        UserError: the file is in no such format, or no image in it has a caption.
    """
    path = local_data_set(path)
    data = read_json_or_lines(Path(path)) if listed is None and is_json(path) else None
    is_coco = isinstance(data, dict) and "images" in data
    captions: dict[ID, list[str]] = {}
    names: dict[ID, str] = {}
    exported = isinstance(data, list) and data and (is_label_studio(data[0]) or is_llava(data[0]))
    if data is None or is_coco or exported:
        layout = Format("karpathy" if is_karpathy(data) else "coco", data) if is_coco else detect_format(path)
        names_needed = listed is not None
        found, _ = read_entries(os.fspath(path), layout, images, split, columns, True, names_needed)
        for entry in _select_listed(found, listed).entries:
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


def is_json(path: str | os.PathLike) -> bool:
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
        return parse_json(path, text)
    except UserError as error:
        broken: Any = error.__cause__
        more = isinstance(broken, json.JSONDecodeError) and broken.msg == "Extra data"
        if not (more and "\n" not in text[: broken.pos].strip()):  # the first value does not end with its line
            raise
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(path, line, number) for number, line in lines if line.strip()]
