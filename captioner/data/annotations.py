"""Captioned images in any layout to examples: chosen, checked against the folder of images, cleaned."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.data.formats import Entries, Entry, Problem, detect_format, read_entries
from captioner.data.shards import Member
from captioner.errors import UserError
from captioner.files import escapes_folder, read_text

MAX_CHARACTERS = 10_000  # of a caption; the time of splitting it into tokens grows with the square of its length
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Example:
    """An image and its captions.

    image_id: the file's own, an int or a str, or the number of the image in the file, from 0.
    path: a file, an album (a folder), or a file in a shard.
    captions: stripped, never blank, one or more, in the order of the file.
    name: path below the folder of the images; for an image in a shard, the shard and the file in it.
    """

    image_id: Any
    path: Path | Member
    captions: tuple[str, ...]
    name: str = field(default="", compare=False)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside: it would traverse millions of new objects again and again and free nothing."""
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
) -> tuple[list[Example], list[str]]:
    """Read captioned images in any layout of docs/data.md.

    Args:
        path: a file, a folder, or an address or pattern of shards.
        images: the folder that file names are relative to. Those of tables, imagefolders and pairs are relative to
            their own folder by default; shards contain the images.
        split: which images, where the layout has several splits; "train" of Karpathy's is train and restval.
        columns: "IMAGE,CAPTION", the columns of a table that have other names than the usual ones.
        listed: a file with an image's name on each line: only these are read.
        skip_bad: leave out an image that is missing, has no caption or lies outside the folder, a blank caption, and
            captions of an image that is not listed; otherwise the first of these is an error.
        option: the command-line option for skip_bad, for the message.
        albums: a file name may also be that of a folder or video.

    Returns:
        The examples in the order of the file, at least one; and what was left out, one line each.

    Raises:
        UserError: a problem as above, an unknown layout, no such split, no folder of images, an id of two images
            (whatever skip_bad is), or no example is left.
    """
    layout = detect_format(path)
    if layout.name in ("coco", "karpathy", "flickr") and images is None:
        option = "--data.train_images, --data.val_images or --images"
        raise UserError(f"{path}: needs the folder of its images; name it with {option}")
    found, folder = read_entries(os.fspath(path), layout, images, split, columns, albums)
    examples, problems = _examples(select_listed(found, listed), folder, albums)
    if problems and not skip_bad:
        raise UserError(f"{_summary(problems)}; correct the data, or use {option} to skip them")
    if not examples:
        why = f"all are bad, the first: {problems[0].message}" if problems else "it lists none"
        raise UserError(f"{path}: no image to use: {why}")
    return examples, [problem.message for problem in problems]


def select_listed(found: Entries, listed: str | os.PathLike | None) -> Entries:
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
    exists = _file_finder(folder, albums)
    examples: list[Example] = []
    problems: list[Problem] = []
    for entry in found.entries:
        image = _find_image(entry, folder, exists)
        if isinstance(image, Problem):
            problems.append(image)
            continue
        captions = tuple(filter(None, map(clean_caption, entry.captions)))
        about = f"{entry.where} ({entry.names[0]!r})"
        if not captions:
            problems.append(Problem("image without a caption", f"{about} has no caption"))
            continue
        if len(captions) < len(entry.captions):
            problems.append(Problem("image with a blank caption", f"{about} has a blank caption"))
        path, name = image
        examples.append(Example(entry.image_id, path, captions, name))
    return examples, problems + found.problems


def _file_finder(folder: Path | None, albums: bool) -> Callable[[str], bool]:
    """A function that tells whether a file (with `albums`, also a folder) exists below a folder, and nowhere else."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images; check the path")

    @functools.cache
    def names(subfolder: str) -> frozenset[str]:
        """Its files. One listing is far cheaper than a request for every image."""
        try:
            with os.scandir(os.path.join(folder or "", subfolder)) as entries:
                return frozenset(entry.name for entry in entries if albums or entry.is_file())
        except (OSError, ValueError):  # no such folder, or a name with NUL
            return frozenset()

    def exists(path: str) -> bool:
        subfolder, name = os.path.split(path)
        return not escapes_folder(path) and name in names(subfolder)

    return exists


def _find_image(
    entry: Entry, folder: Path | None, exists: Callable[[str], bool]
) -> tuple[Path | Member, str] | Problem:
    """The image of an entry and its name, or what is wrong with it."""
    paths = [os.path.normpath(name) for name in entry.names]
    if entry.image is not None:
        return entry.image, paths[0]
    if folder is None:
        return Problem("missing image file", f"{entry.where} has no image")
    for path in paths:
        if exists(path):
            return folder / path, path
    name = repr(entry.names[0])
    if escapes_folder(paths[0]):
        return Problem("file name outside the folder", f"{entry.where}: file name {name} leaves {folder}")
    return Problem("missing image file", f"{entry.where}: no file {name} in {folder}")


def _summary(problems: list[Problem]) -> str:
    """The first problem and the number of the others by kind."""
    first, *others = problems
    kinds = ", ".join(f"{count} × {kind}" for kind, count in Counter(problem.kind for problem in others).items())
    return first.message + (f" (and {len(others)} more: {kinds})" if others else "")
