"""Convert a data set to COCO's JSON or WebDataset shards; images are copied byte for byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.data.addresses import StoredImage
from captioner.data.annotations import Example
from captioner.data.images import ImageError, image_errors, open_file
from captioner.errors import UserError, install_hint
from captioner.files import atomic_folder, escapes_folder, write_json


def to_coco(examples: Sequence[Example], out: Path, root: Path, image_files: str = "refer") -> Path:
    """Write ``captions.json``, and ``images/`` with ``copy`` and ``link``, into the new folder `out`, or nothing.

    The ids are those of the examples; captions are numbered from 1. Width and height are those in the image's header.
    `image_files`: "refer" to the images where they are, in the folder `root`, "copy" them, or make symbolic "link"s.

    Returns:
        The folder that the new file names are relative to.
    """
    with atomic_folder(out) as part:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for example, name in zip(examples, _file_names(examples), strict=True):
            width, height = _size(example.path)
            target = part / "images" / name
            if image_files != "refer":
                target.parent.mkdir(parents=True, exist_ok=True)
            if image_files == "copy":
                target.write_bytes(_bytes(example.path))
            elif isinstance(example.path, StoredImage) or (image_files == "refer" and Path(root, name) != example.path):
                raise UserError(f"{example.path}: is not a file in {root}; use --image_files copy")
            elif image_files == "link":
                target.symlink_to(os.path.realpath(example.path))
            images.append({"id": example.image_id, "file_name": name, "width": width, "height": height})
            for caption in example.captions:
                annotations.append({"id": len(annotations) + 1, "image_id": example.image_id, "caption": caption})
        coco = {"info": {"description": "captions"}, "licenses": [], "images": images, "annotations": annotations}
        write_json(part / "captions.json", coco)
    return root if image_files == "refer" else out / "images"


def to_webdataset(examples: Sequence[Example], out: Path, shard_size: int = 1000) -> int:
    """Write ``000000.tar`` … of `shard_size` images each into the new folder `out`, or nothing; return their number.

    For each image there are NAME.jpg (with the suffix of its file), byte for byte, and NAME.json with `captions`,
    `image_id` and `file_name`. The same examples give the same bytes.
    """
    try:
        from webdataset import ShardWriter
    except ImportError:
        raise UserError(f"shards are written with webdataset: {install_hint('shards')}") from None
    with atomic_folder(out) as part:
        names, keys = _file_names(examples), set[str]()
        # A ShardWriter also has a limit of bytes. PAX allows names that are long or not ASCII.
        limits: dict[str, Any] = {"maxcount": shard_size, "maxsize": float("inf"), "verbose": 0}
        pattern = str(part).replace("%", "%%") + "/%06d.tar"
        with ShardWriter(pattern, **limits, mtime=0.0, format="PAX_FORMAT", encoder=True) as shards:
            for example, name in zip(examples, names, strict=True):
                _size(example.path)  # an error if it is not an image
                stem, suffix = os.path.splitext(name)
                key = _unique(stem.replace(".", "_"), keys)  # WebDataset cuts names at the first dot
                about = {"captions": example.captions, "image_id": example.image_id, "file_name": name}
                image = {suffix[1:].lower() or "jpg": _bytes(example.path)}
                shards.write({"__key__": key, **image, "json": about})
        return len(list(part.glob("*.tar")))


def drop_unreadable(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """The examples whose image has a valid header, and a line for each of the others."""
    good, bad = [], []
    for example in examples:
        try:
            _size(example.path)
            good.append(example)
        except ImageError as error:
            bad.append(str(error))
    return good, bad


def _bytes(image: Path | StoredImage) -> bytes:
    with image_errors(image), open_file(image) as file:
        return file.read()


def _size(image: Path | StoredImage) -> tuple[int, int]:
    """Width and height in pixels, from the header; nothing is decoded."""
    from PIL import Image

    with image_errors(image), open_file(image) as file, Image.open(file) as header:
        return header.size


def _file_names(examples: Sequence[Example]) -> list[str]:
    """A unique file name with / for each example: that in its folder or shard; two shards may have the same."""
    names, taken = [], set[str]()
    for example in examples:
        name = example.path.file_name if isinstance(example.path, StoredImage) else Path(example.name).as_posix()
        if escapes_folder(name):
            raise UserError(f"{example.path}: its name leaves the folder; rename it")
        names.append(_unique(name, taken))
    return names


def _unique(name: str, taken: set[str]) -> str:
    """The name, or with _2, _3 … before its suffix if it is taken: a.jpg, a_2.jpg, a_3.jpg; the result is added."""
    (stem, suffix), number, unique = os.path.splitext(name), 1, name
    while unique in taken:
        number += 1
        unique = f"{stem}_{number}{suffix}"
    taken.add(unique)
    return unique
