"""Images to caption: files, folders, patterns, shards, addresses, rows of Parquet files, and lists of all these."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from captioner.data.addresses import RemoteImage, StoredImage, file_system, is_address, read_errors
from captioner.data.images import SUFFIXES, find_images
from captioner.data.parquet import column_images
from captioner.data.shards import are_shards
from captioner.errors import UserError


def find_inputs(names: Iterable[str], clips: bool = False, column: str = "image") -> list[Path | StoredImage]:
    """The images that the arguments name, in their order, each once.

    Args:
        names: arguments of :func:`captioner.data.images.find_images`; addresses of images, of folders and patterns of
            addresses; Parquet files, where each row is an image; ``@list.txt``, a file with one of these per line.
        clips: whether a folder is an album, as in find_images. Clips must be files of this machine.
        column: of Parquet files: paths or addresses of images, or their bytes.
    """
    found: dict[Path | StoredImage, None] = {}
    for name in names:
        found.update(dict.fromkeys(_images_of(name, clips, column)))
    if clips and not all(isinstance(image, Path) for image in found):
        raise UserError("a model of clips and albums (--model.frames) captions files and folders of this machine only")
    return list(found)


def _images_of(name: str, clips: bool, column: str) -> Iterable[Path | StoredImage]:
    """The images that one argument names."""
    if os.path.isdir(name):
        return find_images([name], clips)
    if name.startswith("@") and not os.path.lexists(name):
        with read_errors(name):
            text = Path(name[1:]).read_text("utf-8", "surrogateescape")
        lines = [line for line in text.split("\n") if line]
        if any(line.startswith("@") and not os.path.lexists(line) for line in lines):
            raise UserError(f"{name} names other lists (@…), which may only be arguments: write them all into one")
        return find_inputs(lines, clips, column)
    if name.lower().endswith((".parquet", ".pq")):
        files = [name] if is_address(name) or os.path.lexists(name) else sorted(glob.glob(name)) or [name]
        return [image for file in files for image in column_images(file, column)]
    if is_address(name) and not are_shards(name):
        return _remote_images(name)
    return find_images([name], clips)


def _remote_images(address: str) -> list[RemoteImage]:
    """The image at an address, the images in a folder at an address, or those that match a pattern."""
    with read_errors(address):
        files, path = file_system(address)
        if re.search(r"[*?[]", path):
            paths = files.glob(path)
        elif not path.lower().endswith(SUFFIXES) and files.isdir(path):
            paths = files.find(path)
        else:  # opening it tells whether it exists
            return [RemoteImage(address)]
        found = sorted(path for path in paths if path.lower().endswith(SUFFIXES))
    if not found:
        raise UserError(f"{address}: no image there ({' '.join(SUFFIXES)}); check the address")
    return [RemoteImage(files.unstrip_protocol(path)) for path in found]
