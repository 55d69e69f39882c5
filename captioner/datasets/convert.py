"""A data set in another layout: COCO's JSON or WebDataset shards, with the bytes of its images as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.data.annotations import Example
from captioner.data.images import ImageError, image_errors, open_file
from captioner.data.shards import Member
from captioner.errors import UserError
from captioner.files import atomic_folder, escapes_folder, write_json

IMAGE_FILES = ("refer", "copy", "link")


def to_coco(examples: Sequence[Example], out: Path, root: Path, image_files: str = "refer") -> Path:
    """Write ``captions.json``, and ``images/`` with ``copy`` and ``link``, into the new folder `out`.

    Ids stay, also strings; captions are numbered from 1. Width and height are those of the header of the file.

    Args:
        examples: what to write.
        out: the folder, made whole or not at all.
        root: the folder that the names of the examples are relative to.
        image_files: "refer": the image_files stay where they are; "copy"; "link": links to the files.

    Returns:
        The folder that the new file names are relative to.

    Raises:
        UserError: `out` is there already or cannot be written, an image cannot be opened, or one that is referred to
            lies outside of `root`.
    """
    with atomic_folder(out) as aside:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for example, name in zip(examples, _names(examples), strict=True):
            width, height = size(example.path)
            if image_files != "refer":
                to = aside / "images" / name
                to.parent.mkdir(parents=True, exist_ok=True)
                if image_files == "copy":
                    to.write_bytes(read(example.path))
                elif isinstance(example.path, Member):
                    raise UserError(f"{example.path}: is in a shard; use --image_files copy")
                else:
                    to.symlink_to(os.path.realpath(example.path))
            elif isinstance(example.path, Member) or Path(root, name) != example.path:
                raise UserError(f"{example.path}: is not a file in {root}; use --image_files copy")
            images.append({"id": example.image_id, "file_name": name, "width": width, "height": height})
            for caption in example.captions:
                annotations.append({"id": len(annotations) + 1, "image_id": example.image_id, "caption": caption})
        write_json(
            aside / "captions.json",
            {"info": {"description": "captions"}, "licenses": [], "images": images, "annotations": annotations},
        )
    return root if image_files == "refer" else out / "images"


def to_webdataset(examples: Sequence[Example], out: Path, shard_size: int = 1000) -> int:
    """Write ``000000.tar``, ``000001.tar`` … into the new folder `out`: for each image NAME.jpg (or as its file is
    called), byte for byte, and NAME.json with `captions`, `image_id` and `file_name`.

    The same examples give the same bytes.

    Args:
        examples: what to write, in this order.
        out: the folder, made whole or not at all.
        shard_size: images in a shard.

    Returns:
        The number of shards.

    Raises:
        UserError: webdataset is not there, `out` is there already or cannot be written, or an image cannot be opened.
    """
    try:
        from webdataset import ShardWriter
    except ImportError:
        raise UserError("shards are written with webdataset: pip install 'captioner[shards]'") from None
    with atomic_folder(out) as aside:
        names = _names(examples)
        # Beside its own limit of images a ShardWriter has one of bytes. PAX: names may be long and not ASCII.
        limits: dict[str, Any] = {"maxcount": shard_size, "maxsize": float("inf"), "verbose": 0}
        pattern = str(aside).replace("%", "%%") + "/%06d.tar"
        with ShardWriter(pattern, **limits, mtime=0.0, format="PAX_FORMAT", encoder=True) as shards:
            for example, name, key in zip(examples, names, _keys(names), strict=True):
                size(example.path)
                about = {"captions": example.captions, "image_id": example.image_id, "file_name": name}
                suffix = os.path.splitext(name)[1][1:].lower() or "jpg"
                shards.write({"__key__": key, suffix: read(example.path), "json": about})
        return len(list(aside.glob("*.tar")))


def read(path: Path | Member) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: they cannot be read.
    """
    with image_errors(path), open_file(path) as file:
        return file.read()


def size(path: Path | Member) -> tuple[int, int]:
    """Width and height in pixels, as the header of the file says; nothing is decoded.

    Raises:
        ImageError: it is not an image.
    """
    from PIL import Image

    with image_errors(path), open_file(path) as file, Image.open(file) as header:
        return header.size


def openable(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """The examples of which the image has a header, and a line for each of the others."""
    good, bad = [], []
    for example in examples:
        try:
            size(example.path)
            good.append(example)
        except ImageError as error:
            bad.append(str(error))
    return good, bad


def _names(examples: Sequence[Example]) -> list[str]:
    """A file name for each, with slashes: the one it has in its folder or shard; unique, for there may be shards.

    Raises:
        UserError: a name leads out of the folder that is written.
    """
    names, taken = [], set()
    for example in examples:
        name = example.path.file if isinstance(example.path, Member) else Path(example.name).as_posix()
        if escapes_folder(name):
            raise UserError(f"{example.path}: its name leaves the folder; give it another")
        (stem, suffix), again = os.path.splitext(name), 1
        while name in taken:
            again += 1
            name = f"{stem}_{again}{suffix}"
        taken.add(name)
        names.append(name)
    return names


def _keys(names: Sequence[str]) -> list[str]:
    """Names of samples: without a suffix, and without another dot, where WebDataset would cut; unique."""
    keys, taken = [], set()
    for name in names:
        stem = os.path.splitext(name)[0].replace(".", "_")
        key, again = stem, 1
        while key in taken:
            again += 1
            key = f"{stem}_{again}"
        taken.add(key)
        keys.append(key)
    return keys
