"""Tables of captioned images: CSV, TSV, JSON Lines, a JSON list of objects, Parquet."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data.entries import (
    CAPTION_KEYS,
    FILE_KEYS,
    ID_KEYS,
    Entries,
    Entry,
    Problem,
    caption_list,
    first_key,
    in_split,
)
from captioner.data.parquet import read_rows
from captioner.errors import UserError
from captioner.files import ID, IDS, json_type, parse_json, read_json, read_text

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
DELIMITERS = "\t,;|"


class Row(NamedTuple):
    """A row of a table: where it is, the image's id if it has one, its file name, and captions."""

    where: str
    image_id: ID | None
    name: str
    captions: tuple[str, ...]


class _Table(NamedTuple):
    """The names of the columns; where each row is and its cells by column; the rows that do not fit."""

    header: Sequence[str]
    rows: Sequence[tuple[str, dict[str, Any]]]
    problems: list[Problem]


def read_table(path: Path, split: str, columns: str | None = None) -> Entries:
    """Read a table whose rows have a file name and a caption or a list of captions.

    Args:
        path: the file. The first line of a CSV has the column names, and its cells are separated by , ; | or tabs.
        split: of a table with a column `split`, only the images of this one.
        columns: "IMAGE,CAPTION", the columns of file names and captions; None: the first of FILE_KEYS and of
            CAPTION_KEYS. A column of ID_KEYS has the ids, if there is one.

    Returns:
        One entry per image, in the order of their first rows.

    Raises:
        UserError: no such columns, a cell of another type, an id of two files, an image in two splits, or nothing of
            the split.
    """
    chosen = None if columns is None else tuple(name.strip() for name in columns.split(","))
    if chosen is not None and (len(chosen) != 2 or not all(chosen)):
        raise UserError(
            f"--columns (or --data.columns) is {columns!r}: expected IMAGE,CAPTION, the names of two columns"
        )
    table = _load(path, chosen)
    found = _columns(table.header, chosen)
    if found is None:
        what = f"names {chosen[0]!r} and {chosen[1]!r}" if chosen else "file names and captions with the usual names"
        there = ", ".join(map(repr, table.header))
        raise UserError(f"{path}: no columns of {what} among {there}; name the two by --columns or --data.columns")
    number = first_key([key for key in ID_KEYS if key not in found], table.header)
    rows = [_row(where, cells, *found, number) for where, cells in table.rows]
    entries = group_rows(rows)
    if "split" in table.header and rows:
        mine = in_split(path, split, [cells.get("split") for _, cells in table.rows])
        kept = {row.name for row, is_mine in zip(rows, mine, strict=True) if is_mine}
        other = {row.name: row.where for row, is_mine in zip(rows, mine, strict=True) if not is_mine}
        if kept & other.keys():
            name = min(kept & other.keys())
            raise UserError(f"{other[name]}: {name!r} is in two splits; keep an image in one")
        entries = [entry for entry in entries if entry.names[0] in kept]
    return Entries(entries, table.problems)


def group_rows(rows: Iterable[Row]) -> list[Entry]:
    """One entry per image, with the captions of all of its rows, in the order of the first rows.

    Rows with one id, or without ids one file name, are one image.
    """
    images: dict[ID, list[Row]] = {}
    for row in rows:
        group = images.setdefault(row.name if row.image_id is None else row.image_id, [])
        if group and group[0].name != row.name:
            both = f"{group[0].name!r} and {row.name!r}"
            raise UserError(f"{row.where}: image id {row.image_id!r} has two files, {both}; give each its own id")
        group.append(row)
    entries = []
    for number, group in enumerate(images.values()):
        where, image_id, name, _ = group[0]
        captions = tuple(caption for row in group for caption in row.captions)
        entries.append(Entry(number if image_id is None else image_id, where, (name,), captions))
    return entries


def find_delimiter(header: str, columns: Sequence[str] | None = None) -> str | None:
    """The delimiter with which the first line of a CSV names a column of file names and one of captions."""
    for delimiter in DELIMITERS:
        names: list[str] = []
        with contextlib.suppress(csv.Error):  # Python before 3.11 refuses NUL
            names = next(csv.reader([header], delimiter=delimiter), [])
        if _columns([name.strip() for name in names], columns):
            return delimiter
    return None


def captions_in_cell(where: str, cell: Any) -> tuple[str, ...]:
    """The captions in a cell: a string, a list of strings, or a list written as a string.

    Raises:
        UserError: anything else; the message begins with `where`.
    """
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        for parse in (json.loads, ast.literal_eval):  # pandas writes Python's lists
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = parse(cell)
                if isinstance(found, list) and all(isinstance(one, str) for one in found):
                    return tuple(found)
    if cell is None or cell == []:
        return ()
    return tuple(caption_list(where, cell))


def _columns(header: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, str] | None:
    """The columns of file names and captions, if both are there."""
    names, captions = ([chosen[0]], [chosen[1]]) if chosen else (FILE_KEYS, CAPTION_KEYS)
    image = first_key(names, header)
    caption = first_key([name for name in captions if name != image], header)
    return None if image is None or caption is None else (image, caption)


def _row(where: str, cells: dict[str, Any], image: str, caption: str, number: str | None) -> Row:
    name, image_id = cells.get(image), cells.get(number) if number else None
    if not isinstance(name, str):
        hint = " (images inside a table are not read: write them to files)" if isinstance(name, dict) else ""
        raise UserError(f"{where}: {image!r} is {json_type(name)}, expected a file name{hint}")
    if image_id is not None and (not isinstance(image_id, IDS) or isinstance(image_id, bool)):
        raise UserError(f"{where}: {number!r} is {json_type(image_id)}, expected a whole number or a string")
    return Row(where, image_id, name.strip(), captions_in_cell(f"{where}: {caption!r}", cells.get(caption)))


def _load(path: Path, columns: Sequence[str] | None) -> _Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        header, rows = read_rows(str(path))
        return _Table(header, [(f"{path}: row {n}", row) for n, row in enumerate(rows)], [])
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _load_json(path, suffix)
    text = read_text(path, "text")
    first = text.split("\n", 1)[0]
    delimiter = find_delimiter(first, columns)
    if delimiter is None:  # for the message that lists the columns
        return _Table([name.strip() for name in first.split(max(DELIMITERS, key=first.count))], [], [])
    return _load_csv(path, text, delimiter)


def _load_json(path: Path, suffix: str) -> _Table:
    if suffix == ".json":
        rows = [(f"{path}: entry {n}", row) for n, row in enumerate(read_json(path))]
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        rows = [(f"{path}: line {n}", parse_json(path, line, n)) for n, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: is {json_type(row)}, expected an object with a file name and a caption")
    return _Table(list(dict.fromkeys(key for _, row in rows for key in row)), rows, [])


def _load_csv(path: Path, text: str, delimiter: str) -> _Table:
    try:
        numbered = _csv_rows(path, text, delimiter, csv.QUOTE_MINIMAL)
    except UserError:
        if delimiter != "\t":
            raise
        numbered = _csv_rows(path, text, delimiter, csv.QUOTE_NONE)  # many TSV files do not quote quotation marks
    header = numbered[0][1]
    rows, problems = [], []
    for line, cells in numbered[1:]:
        if len(cells) > len(header) and header[-1] in CAPTION_KEYS:  # a caption with commas, not quoted, as Kaggle's
            cells[len(header) - 1 :] = [f"{delimiter} ".join(cells[len(header) - 1 :])]
        if len(cells) == len(header):
            rows.append((f"{path}: line {line}", dict(zip(header, cells, strict=True))))
        else:
            count = f"{len(cells)} cells, the first line has {len(header)}"
            problems.append(Problem("row with too few or too many cells", f"{path}: line {line} has {count}"))
    return _Table(header, rows, problems)


def _csv_rows(path: Path, text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]]:
    """The stripped cells of each row that is not empty, with the number of its (last) line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        hint = "a cell that begins with a quotation mark ends with one, and those inside are doubled"
        raise UserError(f"{path}: line {reader.line_num}: {error}; {hint}") from None
