"""Parquet files on disk or at an address: the rows of a table, and the images in a column."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from captioner.data.addresses import RemoteImage, StoredImage, is_address, open_address, read_errors
from captioner.errors import UserError, install_hint, one_line

BATCH = 64  # rows decoded together


@dataclass(frozen=True, slots=True)
class ParquetImage(StoredImage):
    """An image whose bytes are in a Parquet file."""

    file: str  # path or address
    column: str  # of bytes; image.bytes is a field of a column of structs, as in data sets of Hugging Face
    number: int  # of the row in the file, from 0
    group: int
    row: int  # in the row group
    path: str = ""  # the name that the file has for it

    def __str__(self) -> str:
        return f"{self.file}#{self.number}"

    @property
    def file_name(self) -> str:
        return self.path or f"{os.path.basename(self.file)}/{self.number}.jpg"

    @property
    def version(self) -> str:
        return f"{self.number} of {os.stat(self.file).st_size}" if not is_address(self.file) else str(self.number)

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
    """The names of all columns, and the rows; a column of bytes, or of structs with bytes, has :class:`ParquetImage`.

    Structs of bytes and path are how Hugging Face's datasets write images. No bytes are read.
    """
    with read_errors(path):
        file = _open_parquet(path)
        schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise UserError(f"{path}: several columns have one name ({', '.join(schema.names)}); rename or remove some")
        columns = ((name, _bytes_column(name, schema.field(name).type)) for name in schema.names)
        images = {name: column for name, column in columns if column is not None}
        named = [f"{name}.path" for name in images if _has_path(schema.field(name).type)]
        rows = file.read([name for name in schema.names if name not in images] + named).to_pylist()
        if not rows:
            rows = [{} for _ in range(file.metadata.num_rows)]
        for number, (row, (group, place)) in enumerate(zip(rows, _places(file), strict=True)):
            for name, column in images.items():
                its = row.get(name)
                label = its.get("path") if isinstance(its, dict) else None
                row[name] = ParquetImage(path, column, number, group, place, label or "")
        return schema.names, rows


def _places(file: Any) -> Iterator[tuple[int, int]]:
    """The row group of each row, and the row in it."""
    for group in range(file.num_row_groups):
        for row in range(file.metadata.row_group(group).num_rows):
            yield group, row


def _bytes_column(name: str, kind: Any) -> str | None:
    """The column, or the field of a column of structs, that has bytes; None if it has none."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", kind.field("bytes").type
    return name if types.is_binary(kind) or types.is_large_binary(kind) else None


def _has_path(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index("path") >= 0


def column_images(path: str, column: str) -> Iterator[Path | StoredImage]:
    """The images of a column of paths, addresses or bytes, in the order of the rows."""
    with read_errors(path):
        file = _open_parquet(path)
        from pyarrow import types

        if column not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path} has no column {column!r}: name one by --column ({columns})")
        kind = file.schema_arrow.field(column).type
        if (inner := _bytes_column(column, kind)) is not None:
            for number, (group, row) in enumerate(_places(file)):
                yield ParquetImage(path, inner, number, group, row)
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
        raise UserError(f"{path}: Parquet is read with pyarrow: {install_hint('parquet')}") from None
    return ParquetFile(open_address(path) if is_address(path) else path)
