"""Files in tar archives (WebDataset shards), on disk or at an address, indexed by offset for random access.

WebDataset itself streams samples. The index takes one pass over the shards at the start of training; then the order
of the images depends on the seed alone, and resumption in mid-epoch, several processes, fine-tuning and the feature
file work as with image files.
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
from typing import Any, BinaryIO, NamedTuple

from captioner.data.addresses import StoredImage, is_address, open_address, read_bytes, read_errors
from captioner.errors import UserError, install_hint
from captioner.files import escapes_folder, open_regular

BLOCK = 4 * 2**20  # bytes of a remote shard that are fetched together when it is indexed
MAX_TEXT = 2**24  # bytes of a caption file
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # folders and name up to the first dot; WebDataset's rule


@dataclass(frozen=True)
class Member(StoredImage):
    """A file in a shard."""

    shard: str  # path or address of the tar
    file: str  # its name in the tar, with folders
    offset: int  # of its bytes in the tar
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.file}"

    @property
    def file_name(self) -> str:
        return self.file

    @property
    def version(self) -> str:
        return str(self.size)

    def open(self) -> BinaryIO:
        """The bytes of the file, in memory; UserError also if the shard has changed since it was indexed."""
        if is_address(self.shard):
            data = read_bytes(self.shard, self.offset, self.offset + self.size)
        else:
            with read_errors(self.shard), open_regular(self.shard) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        if len(data) != self.size:
            raise UserError(f"{self}: got {len(data):,} of {self.size:,} bytes: the shard has changed or is cut short")
        return io.BytesIO(data)


class Sample(NamedTuple):
    """Consecutive files of a shard with the same name up to the first dot."""

    key: str  # that name
    files: dict[str, Member]  # by the rest of the name, in lower case: "jpg", "txt"
    texts: dict[str, bytes]  # of the text files


def are_shards(path: str | os.PathLike) -> bool:
    """Whether the ending is that of shards: a .tar file, an address or a pattern of them."""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)(\?[^/]*)?$", os.fspath(path).lower()) is not None


def expand(path: str | os.PathLike) -> list[str]:
    """The shards that a path, an address, a pattern with braces (train-{000..009}.tar) or a folder names, in order."""
    text = os.fspath(path)
    if is_address(text):
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
        raise UserError(f"{pattern}: braces need braceexpand: {install_hint('shards')}") from None
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: unbalanced braces ({error}); write them as {{000..009}}") from None


def samples(shard: str, texts: Sequence[str] = ("txt", "json")) -> Iterator[Sample]:
    """The samples of a shard in its order, in one pass; a remote shard is downloaded once, in blocks.

    Only files with the endings `texts` are read; the others are only located.
    """
    key, files, read = "", dict[str, Member](), dict[str, bytes]()
    for member, data in _members(shard, tuple(f".{text}" for text in texts)):
        match = KEY.fullmatch(member.file)
        if match is None or match[1].startswith("__"):  # hidden, without an ending, or metadata
            continue
        if match[1] != key:
            if files:
                yield Sample(key, files, read)
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
    """The regular files of a tar, with the bytes of those whose names end in `texts`."""
    member = None
    with read_errors(shard), _open_tar(shard) as (file, tar):
        for info in tar:
            if info.isreg():
                member = _member(shard, info)
                content = tar.extractfile(info) if info.name.lower().endswith(texts) else None
                if content is not None and info.size > MAX_TEXT:
                    raise UserError(f"{member}: has {info.size:,} bytes of captions, at most {MAX_TEXT:,} are read")
                yield member, None if content is None else content.read()
        file.seek(tar.offset)  # the loop ends at a damaged header, as it does at the zeros that end a tar
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise UserError(f"{shard}: is damaged at byte {tar.offset:,}; fetch it again")
    if member is not None and is_address(shard):
        read_bytes(shard, member.offset, member.offset + 1)  # an error if the server would send the whole shard


@contextlib.contextmanager
def _open_tar(shard: str) -> Iterator[tuple[Any, tarfile.TarFile]]:
    remote = {"block_size": BLOCK, "cache_type": "readahead"}
    with open_address(shard, **remote) if is_address(shard) else open_regular(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield file, tar
        except tarfile.ReadError as error:
            if shard.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
                raise UserError(f"{shard}: is compressed and can only be read as a whole: unpack it to .tar") from None
            raise UserError(f"{shard}: is not a whole tar ({error}): fetch it again") from None


def _member(shard: str, info: tarfile.TarInfo) -> Member:
    member = Member(shard, info.name.removeprefix("./"), info.offset_data, info.size)
    if escapes_folder(member.file):
        raise UserError(f"{shard}: {member.file!r} leaves the folder it would be unpacked in; rename it")
    if info.issparse():
        raise UserError(f"{member}: is a sparse file, which is not stored byte for byte; write it again")
    return member
