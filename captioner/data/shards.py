"""Files in tar archives (WebDataset shards), local or remote, read at random by an index of where each one lies.

WebDataset itself streams samples. An index costs one pass over the shards when a training starts; then the order of the
images depends on the seed alone, as with files, and resumption in mid-epoch, several processes, fine-tuning and the
feature file work as they do there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from captioner.errors import UserError
from captioner.files import escapes_folder, open_regular

BLOCK = 4 * 2**20  # bytes of a remote shard that are fetched together when it is indexed
TEXT = 2**24  # bytes of captions of a sample
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # folders and name up to the first dot; WebDataset's rule


@dataclass(frozen=True)
class Member(os.PathLike):
    """A file in a shard, which :func:`captioner.data.images.open_image` takes as a path.

    shard: path or address of the tar.
    file: the name of the file in it.
    offset, size: where its bytes lie in the tar.
    """

    shard: str
    file: str
    offset: int
    size: int

    def __fspath__(self) -> str:
        """What messages call it; no such path exists."""
        return f"{self.shard}/{self.file}"

    __str__ = __fspath__

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.file.rsplit("/", 1)[-1]

    def open(self) -> BinaryIO:
        """Its bytes, in memory.

        Raises:
            UserError: the shard cannot be read there, or is not the one that was indexed.
        """
        with _errors(self.shard):
            if is_remote(self.shard):
                files, path = _file_system(self.shard)
                data = files.cat_file(path, start=self.offset, end=self.offset + self.size)
            else:
                with open_regular(self.shard) as file:
                    file.seek(self.offset)
                    data = file.read(self.size)
        if len(data) != self.size:
            raise UserError(f"{self}: {len(data):,} of {self.size:,} bytes came: the shard has changed or is cut short")
        return io.BytesIO(data)


@dataclass(frozen=True)
class Sample:
    """Files of a shard that follow each other and have one name up to the first dot.

    key: that name.
    files: by the rest of the name, in small letters: "jpg", "txt".
    texts: the bytes of those that were asked for.
    """

    key: str
    files: dict[str, Member]
    texts: dict[str, bytes]


def is_remote(path: str | os.PathLike) -> bool:
    """Whether this is an address, such as https://… or s3://…, that fsspec reads."""
    return "://" in os.fspath(path)


def are_shards(path: str | os.PathLike) -> bool:
    """Whether this names shards by its ending: a .tar file, an address or a pattern of them."""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)(\?[^/]*)?$", os.fspath(path).lower()) is not None


def expand(path: str | os.PathLike) -> list[str]:
    """The shards that a path, an address, a pattern with braces (train-{000..009}.tar) or a folder names, in order.

    Raises:
        UserError: a folder without a .tar, or no such file.
    """
    text = os.fspath(path)
    if is_remote(text):
        return _braces(text)
    if os.path.isdir(text):
        found = [str(file) for file in sorted(Path(text).iterdir()) if file.name.endswith(".tar")]
        if not found:
            raise UserError(f"{text}: no .tar in this folder; check the path")
        return found
    shards = [text] if os.path.exists(text) else _braces(text)
    for shard in shards:
        if not os.path.isfile(shard):
            raise UserError(f"{shard}: no such shard; check the path")
    return shards


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise UserError(f"{pattern}: braces need braceexpand: pip install 'captioner[shards]'") from None
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: braces that do not fit together ({error}); write them as {{000..009}}") from None


def samples(shard: str, texts: Sequence[str] = ("txt", "json")) -> Iterator[Sample]:
    """The samples of a shard in its order, in one pass; a remote one is fetched in blocks, once.

    Args:
        shard: path or address of a tar.
        texts: files that end so are read; of the others only the place is kept.

    Raises:
        UserError: not a tar, a damaged or compressed one, a file that comes twice in a sample, or a server that sends
            only whole files.
    """
    key, files, read = "", dict[str, Member](), dict[str, bytes]()
    for member, data in _members(shard, tuple(f".{text}" for text in texts)):
        match = KEY.fullmatch(member.file)
        if match is None or match[1].startswith("__"):  # hidden, without an ending, or of the tool that wrote it
            continue
        if match[1] != key and files:
            yield Sample(key, files, read)
        if match[1] != key:
            key, files, read = match[1], {}, {}
        ending = match[2].lower()
        if ending in files:
            raise UserError(f"{member}: comes twice; write the shard again")
        files[ending] = member
        if data is not None:
            read[ending] = data
    if files:
        yield Sample(key, files, read)


def _members(shard: str, texts: tuple[str, ...]) -> Iterator[tuple[Member, bytes | None]]:
    """The plain files of a tar, with the bytes of those that end in `texts`."""
    last = None
    with _errors(shard), _opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.isreg():
                last = Member(shard, info.name.removeprefix("./"), info.offset_data, info.size)
                if escapes_folder(last.file):
                    raise UserError(f"{shard}: {last.file!r} leaves the folder it would be unpacked in; name it anew")
                if info.issparse():
                    raise UserError(f"{last}: is a sparse file, whose size is not that of its bytes; write it anew")
                content = tar.extractfile(info) if info.name.lower().endswith(texts) else None
                if content is not None and info.size > TEXT:
                    raise UserError(f"{last}: has {info.size:,} bytes of captions, at most {TEXT:,} are read")
                data = None if content is None else content.read()
                yield last, data
        file.seek(tar.offset)  # a damaged header ends the loop as the zeros at the end do
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise UserError(f"{shard}: is damaged at byte {tar.offset:,}; fetch it again")
    if last is not None and is_remote(shard):
        _check_parts(last)


def _check_parts(member: Member) -> None:
    """A server that ignores what part was asked for would send the whole shard for each image."""
    with _errors(member.shard):
        files, path = _file_system(member.shard)
        parts = len(files.cat_file(path, start=member.offset, end=member.offset + 1)) <= 1
    if not parts:
        raise UserError(_whole(member.shard))


def _whole(shard: str) -> str:
    return f"{shard}: the server sends only whole files; download it, or write simplecache::{shard}"


@contextlib.contextmanager
def _opened(shard: str) -> Iterator[Any]:
    """The shard to read from front to back."""
    if is_remote(shard):
        files, path = _file_system(shard)
        with files.open(path, "rb", block_size=BLOCK, cache_type="readahead") as file:
            yield file
    else:
        with open_regular(shard) as file:
            yield file


def _file_system(shard: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. fsspec keeps one for each process."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{shard}: addresses are read with fsspec: pip install 'captioner[shards]'") from None
    try:
        return url_to_fs(shard)
    except ImportError as error:  # it names the package of the protocol: s3fs, gcsfs …
        raise UserError(f"{shard}: {error}; for http: pip install 'captioner[shards]'") from None


@contextlib.contextmanager
def _errors(shard: str) -> Iterator[None]:
    """Whatever goes wrong with a shard becomes one line that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        gone = "no such shard, or no answer; check the address" if is_remote(shard) else "no such shard; check the path"
        raise UserError(f"{shard}: {gone}") from None
    except tarfile.ReadError as error:
        packed = any(shard.lower().endswith(end) for end in (".gz", ".tgz", ".bz2", ".xz", ".zst"))
        what = "is compressed, which can only be read as a whole: unpack it to .tar" if packed else ""
        raise UserError(f"{shard}: {what or f'is not a whole tar ({error}): fetch it again'}") from None
    except Exception as error:  # of the disk, the network, or a file system of fsspec
        if "range requests" in str(error) or "Cannot seek streaming" in str(error):
            raise UserError(_whole(shard)) from None
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{shard}: cannot be read ({said}); check the address and the network") from error
