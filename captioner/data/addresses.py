"""Addresses such as https://… and s3://…: recognised, read with fsspec, errors in one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from captioner.errors import UserError, install_hint, one_line

PROTOCOL = "[a-z][a-z0-9+._-]+"
ADDRESS = re.compile(f"({PROTOCOL}::)*{PROTOCOL}://", re.IGNORECASE)


class StoredImage(os.PathLike[str]):
    """An image that is not a separate file; :func:`captioner.data.images.open_image` takes it as a path.

    ``str`` is its name in messages and results, not the path of a file.
    """

    def __fspath__(self) -> str:
        return str(self)

    @abstractmethod
    def open(self) -> BinaryIO:
        """The bytes of the image, in memory; UserError if they cannot be read."""

    @property
    def file_name(self) -> str:
        """A file name for the image, with its folders."""
        return str(self)

    @property
    def name(self) -> str:
        """The file name without its folders."""
        return self.file_name.rsplit("/", 1)[-1]

    @property
    def version(self) -> str:
        """What else identifies the image, for its cached features, such as its size."""
        return ""


@dataclass(frozen=True, slots=True)
class RemoteImage(StoredImage):
    """An image at an address."""

    address: str

    def __str__(self) -> str:
        return self.address

    def open(self) -> BinaryIO:
        return io.BytesIO(read_bytes(self.address))


def is_address(path: str | os.PathLike) -> bool:
    """Whether fsspec reads this: PROTOCOL://…, or a chain such as simplecache::https://…"""
    return ADDRESS.match(os.fspath(path)) is not None


def local_data_set(path: str | os.PathLike) -> str | os.PathLike:
    """The folder of the download of hf://datasets/ORGANISATION/NAME[@REVISION]; other paths as they are.

    UserError if it cannot be fetched.
    """
    text = os.fspath(path)
    if not text.startswith("hf://datasets/"):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{text} needs huggingface_hub: {install_hint('hub,parquet')}") from None
    name, _, revision = text.removeprefix("hf://datasets/").partition("@")
    try:
        return snapshot_download(name, repo_type="dataset", revision=revision or None)
    except Exception as error:  # of huggingface_hub and of the network library below it
        raise UserError(f"{text} cannot be fetched ({one_line(error)})") from None


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it; ValueError if the protocol is unknown."""
    from fsspec.core import url_to_fs  # installed with torch

    try:
        return url_to_fs(address)
    except ImportError as error:  # its message names the package: s3fs, gcsfs …
        kind = re.search(r"\b(s3|http)[as]?://", address)
        extra = {"s3": "s3", "http": "shards"}
        hint = install_hint(extra[kind[1]]) if kind else str(error)
        raise UserError(f"{address}: needs a package that is not installed: {hint}") from None


def read_bytes(address: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes at an address, or those from `start` up to `end` or the end of the file."""
    with read_errors(address):
        files, path = file_system(address)
        data = files.cat_file(path, start=start, end=end)
    if end is not None and len(data) > end - (start or 0):
        raise UserError(_only_whole_files(address))
    return data


def open_address(address: str, **options: Any) -> Any:
    """A seekable binary file at an address, fetched in blocks; `options` are those of fsspec's ``open``."""
    files, path = file_system(address)
    return files.open(path, "rb", **options)


@contextlib.contextmanager
def read_errors(source: str) -> Iterator[None]:
    """Turn any error while a path or an address is read into a UserError of one line that names it."""
    place = "address" if is_address(source) else "path"
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; check the {place}") from None
    except Exception as error:  # every library under fsspec has its own errors
        if "range requests" in str(error) or "Cannot seek streaming" in str(error):
            raise UserError(_only_whole_files(source)) from None
        also = ", the network and the credentials" if place == "address" else " and the file"
        raise UserError(f"{source}: cannot be read ({one_line(error)}); check the {place}{also}") from error


def _only_whole_files(address: str) -> str:
    return f"{address}: the server sends only whole files; download it, or write simplecache::{address}"
