"""What can be captioned besides files: images by address (s3://…), in the rows of a parquet file, or on a list."""

from __future__ import annotations

import functools
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.images import SUFFIXES, ImageError, find_images
from captioner.data.shards import Member, are_shards
from captioner.errors import UserError

PARQUET = (".parquet", ".pq")
ROWS = 64  # of a parquet file, decoded together


@dataclass(frozen=True, slots=True)
class Address:
    """An image anywhere that fsspec reaches."""

    url: str

    def __str__(self) -> str:
        return self.url

    def fetch(self) -> io.BytesIO:
        """The bytes of the file, as a stream that knows its name.

        Raises:
            ImageError: it cannot be fetched.
        """
        try:
            system, path = _system(self.url)
            return _named(system.cat_file(path), self.url)
        except FileNotFoundError:
            raise ImageError(f"{self.url}: no such file; check the address") from None
        except Exception as error:  # each kind of storage has its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ImageError(f"{self.url}: cannot be fetched ({reason})") from None


@dataclass(frozen=True, slots=True)
class Row:
    """An image whose bytes lie in a parquet file.

    Attributes:
        file: path or address.
        column: of bytes; `image.bytes` is the field of a column of structs, as Hugging Face's data sets have it.
        number: of the row, from 0.
    """

    file: str
    column: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"

    def fetch(self) -> io.BytesIO:
        """The bytes of the image, as a stream that knows its name. Quick only when rows are taken in their order.

        Raises:
            ImageError: the file cannot be read, or has nothing there.
        """
        try:
            rows = _rows(self.file, self.column)
            if rows.start > self.number:  # it has gone by
                _rows.cache_clear()
                rows = _rows(self.file, self.column)
            found = rows.read(self.number)
        except Exception as error:  # of pyarrow, or of the storage
            _rows.cache_clear()
            raise ImageError(f"{self}: cannot be read ({' '.join(str(error).split())[:200]})") from None
        if not found:
            raise ImageError(f"{self}: is empty (0 bytes); fetch it again")
        return _named(found, str(self))


class _Rows:
    """The values of one column, forwards: whole row groups are passed over, the rest is read in small batches."""

    def __init__(self, file: str, column: str) -> None:
        self.file, self.column = _parquet(file), column
        self.start, self.values = 0, list[bytes | None]()  # the batch at hand, and the number of its first row
        self.batches: Iterator[Any] = iter(())

    def read(self, number: int) -> bytes | None:
        if number >= self.start + len(self.values):
            first, end, group = 0, 0, 0
            for group in range(self.file.num_row_groups):
                first, end = end, end + self.file.metadata.row_group(group).num_rows
                if number < end:
                    break
            if first > self.start or not self.values:  # another row group
                self.start, self.values = first, []
                self.batches = self.file.iter_batches(ROWS, row_groups=[group], columns=[self.column])
            while number >= self.start + len(self.values):
                self.start += len(self.values)
                column = next(self.batches).column(0)
                self.values = (column.flatten()[0] if "." in self.column else column).to_pylist()
        return self.values[number - self.start]


@functools.lru_cache(maxsize=1)
def _rows(file: str, column: str) -> _Rows:
    return _Rows(file, column)


Item = Path | Member | Address | Row


def find_inputs(names: Iterable[str], clips: bool = False, column: str = "image") -> list[Item]:
    """The images that the arguments name, in their order, each once.

    Args:
        names: what :func:`captioner.data.images.find_images` takes; addresses (``s3://bucket/cat.jpg``), with patterns
            or of folders, too; ``@list.txt``, a file with any of these a line; parquet files, each row an image.
        clips: a folder is an album; see there. Clips are files.
        column: of parquet files: paths or addresses of images, or their bytes.

    Raises:
        UserError: nothing is there, or it cannot be opened.
    """
    found: dict[Item, None] = {}
    for name in names:
        images: Iterable[Item]
        if os.path.isdir(name):
            images = find_images([name], clips)
        elif name.startswith("@") and not os.path.lexists(name):
            lines = _lines(name[1:])
            if any(line.startswith("@") and not os.path.lexists(line) for line in lines):
                raise UserError(f"{name} names other lists (@…), which may only be arguments: write them all into one")
            images = find_inputs(lines, clips, column)
        elif name.lower().endswith(PARQUET):
            files = [name] if _is_address(name) or os.path.lexists(name) else sorted(glob.glob(name)) or [name]
            images = (image for file in files for image in _images(file, column))
        elif _is_address(name) and not are_shards(name):
            images = _addresses(name)
        else:
            images = find_images([name], clips)
        found.update(dict.fromkeys(images))
    if clips and not all(isinstance(image, Path) for image in found):
        raise UserError("a model of clips and albums (--model.frames) captions files and folders of this machine only")
    return list(found)


def _is_address(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", name) is not None


def _lines(name: str) -> list[str]:
    try:
        return [line for line in Path(name).read_text("utf-8", "surrogateescape").split("\n") if line]
    except OSError as error:
        raise UserError(f"@{name}: the list cannot be read ({error.strerror}); check the path") from None


def _addresses(url: str) -> list[Address]:
    try:
        system, path = _system(url)
        if re.search(r"[*?[]", path):
            names = [name for name in system.glob(path) if name.lower().endswith(SUFFIXES)]
        elif path.lower().endswith(SUFFIXES):  # a missing one is said when it is opened, as of files
            return [Address(url)]
        elif system.isdir(path):
            names = [name for name in system.find(path) if name.lower().endswith(SUFFIXES)]
        else:
            return [Address(url)]
    except UserError:
        raise
    except Exception as error:  # each kind of storage has its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url} cannot be listed ({reason}): check the address and the credentials") from None
    if not names:
        raise UserError(f"{url}: no image there ({' '.join(SUFFIXES)}); check the address")
    return [Address(system.unstrip_protocol(name)) for name in sorted(names)]


def _images(name: str, column: str) -> Iterator[Item]:
    """The rows of a parquet file."""
    with _reading(name):
        file = _parquet(name)
        import pyarrow

        if column not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise UserError(f"{name} has no column {column!r}: name one by --column ({columns})")
        kind = file.schema_arrow.field(column).type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column, kind = f"{column}.bytes", kind.field("bytes").type
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            yield from (Row(name, column, number) for number in range(file.metadata.num_rows))
        elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            for batch in file.iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield Address(value) if _is_address(value or "") else Path(value or f"{name}#null")
        else:
            raise UserError(f"{name}: column {column} holds {kind}: expected paths, addresses or the bytes of images")


class _reading:
    """Whatever goes wrong with a parquet file is one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name} cannot be read as a parquet file ({reason}): check it") from None


def _parquet(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{name}: parquet files are read with pyarrow: pip install 'captioner[parquet]'") from None
    if not _is_address(name):
        return pyarrow.parquet.ParquetFile(name)
    system, path = _system(name)
    return pyarrow.parquet.ParquetFile(system.open(path, "rb"))


@functools.lru_cache(maxsize=8)
def _protocol(protocol: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:  # fsspec says which package is missing
        extra = "pip install 'captioner[s3]'" if protocol in ("s3", "s3a") else error
        raise UserError(f"{protocol}:// addresses need a package that is not installed: {extra}") from None
    except ValueError as error:
        raise UserError(f"{protocol}:// is no kind of address that is known here ({error})") from None


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path on it."""
    system = _protocol(url.split("://")[0])
    return system, system._strip_protocol(url)


def _named(data: bytes, name: str) -> io.BytesIO:
    file = io.BytesIO(data)
    file.name = name  # type: ignore[attr-defined]
    return file
