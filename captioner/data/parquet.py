"""Parquet files on disk or at an address: the rows of a table, and the images in a column."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from captioner.data.addresses import RemoteImage, StoredImage, is_address, open_address, read_errors
from captioner.errors import UserError, one_line

BATCH = 64  # rows decoded together


@dataclass(frozen=True, slots=True)
class ParquetImage(StoredImage):
    """An image whose bytes are in a Parquet file."""

    file: str  # path or address
    column: str  # of bytes; image.bytes is a field of a column of structs, as in data sets of Hugging Face
    number: int  # of the row in the file, from 0
    group: int
    row: int  # in the row group

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"

    def open(self) -> BinaryIO:
        """The bytes of the image; fast only when rows are opened in their order."""
        where = self.file, self.column, self.group
        try:
            reader = _group_reader(*where)
            if self.row < reader.first:  # it only reads forwards
                _group_reader.cache_clear()
                reader = _group_reader(*where)
            return io.BytesIO(reader.read(self.row) or b"")
        except Exception as error:  # of pyarrow, or of a library under fsspec
            _group_reader.cache_clear()
            raise UserError(f"{self}: cannot be read ({one_line(error)})") from None


def read_rows(path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of all columns, and the rows without columns of bytes."""
    with read_errors(path):
        file = _open_parquet(path)
        from pyarrow.types import is_binary

        schema = file.schema_arrow
        few = [name for name in schema.names if not is_binary(schema.field(name).type)]
        return schema.names, file.read(few).to_pylist()


def column_images(path: str, column: str) -> Iterator[Path | StoredImage]:
    """The images of a column of paths, addresses or bytes, in the order of the rows."""
    with read_errors(path):
        file = _open_parquet(path)
        from pyarrow import types

        if column not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path} has no column {column!r}: name one by --column ({columns})")
        kind = file.schema_arrow.field(column).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column, kind = f"{column}.bytes", kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind):
            numbers = itertools.count()
            for group in range(file.num_row_groups):
                for row in range(file.metadata.row_group(group).num_rows):
                    yield ParquetImage(path, column, next(numbers), group, row)
        elif types.is_string(kind) or types.is_large_string(kind):
            for batch in file.iter_batches(columns=[column]):
                for name in batch.column(0).to_pylist():
                    yield RemoteImage(name) if is_address(name or "") else Path(name or f"{path}#null")
        else:
            raise UserError(f"{path}: column {column} holds {kind}: expected paths, addresses or the bytes of images")


class _GroupReader:
    """The values of one column in a row group, read forwards in batches."""

    def __init__(self, path: str, column: str, group: int) -> None:
        self.batches = _open_parquet(path).iter_batches(BATCH, row_groups=[group], columns=[column])
        self.is_field = "." in column
        self.first, self.values = 0, list[bytes | None]()  # the current batch and the number of its first row

    def read(self, row: int) -> bytes | None:
        while row >= self.first + len(self.values):
            self.first += len(self.values)
            column = next(self.batches).column(0)
            self.values = (column.flatten()[0] if self.is_field else column).to_pylist()
        return self.values[row - self.first]


_group_reader = functools.lru_cache(maxsize=1)(_GroupReader)


def _open_parquet(path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet is read with pyarrow: pip install 'captioner[parquet]'") from None
    return ParquetFile(open_address(path) if is_address(path) else path)
