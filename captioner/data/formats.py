"""Layouts of captioned images other than COCO's, each to a list of entries, in functions that open no image."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data import shards
from captioner.data.addresses import is_address
from captioner.data.images import SUFFIXES, VIDEOS
from captioner.data.parquet import read_rows
from captioner.errors import UserError
from captioner.files import ID, IDS, json_type, parse_json, read_json, read_text, require_fields

# What files call the number, the name and the captions of an image, likeliest first.
NUMBERS = ("image_id", "cocoid", "img_id", "imgid")
NAMES = ("file_name", "filename", "image_path", "image_name", "filepath", "image", "img", "file", "path")
CAPTIONS = ("captions", "caption", "text", "texts", "sentences", "sentence", "comment", "raw")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an imagefolder
SAME = (("train", "restval"), ("val", "validation", "valid", "dev"), ("test",))  # names of a split
TOKEN = re.compile(r"(\S.*)#\d+\t(.*)")  # name.jpg#0<TAB>caption
LISTS = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class Entry:
    """An image as a file names it; nobody has looked whether it is there.

    image_id: the file's own, or the number of the image in the whole file.
    where: file and line, for messages.
    names: the paths it may have below the folder of the images, the likeliest first.
    captions: stripped; blank ones are kept.
    image: where it is, if the layout knows; None in a sample of a shard that has none.
    """

    image_id: ID
    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    image: shards.Member | None = None


class Problem(NamedTuple):
    """What is wrong in one place: its kind, for counting, and a line that says it."""

    kind: str
    line: str


Listed = tuple[list[Entry], list[Problem]]


# ---- which layout


def recognise(path: str | os.PathLike) -> str:
    """The layout of a file, folder or address: coco, karpathy, flickr, table, pairs, imagefolder or webdataset.

    Raises:
        UserError: none of them; the line says what was looked for.
    """
    return opened(path)[0]


def opened(path: str | os.PathLike) -> tuple[str, Any]:
    """The layout, as :func:`recognise` finds it, and what is in a .json file, which had to be read for that."""
    text = os.fspath(path)
    if os.path.isfile(text) and text.lower().endswith(".json"):
        data = read_json(Path(text))
        return of_json(Path(text), data), data
    return _recognise(text), None


def _recognise(text: str) -> str:
    """The layout of what is not a .json file."""
    if is_address(text) or shards.are_shards(text):
        return "webdataset"
    if os.path.isdir(text):
        found = _of_folder(Path(text))
        for folder in _split_folders(Path(text)) if found is None else ():
            found = found or _of_folder(folder)
        if found is None and any(Path(text).rglob("*.txt")):
            found = "pairs"
        if found is None:
            raise UserError(
                f"{text}: no data set in this folder: looked for {', '.join(METADATA)}, *.tar, images with a .txt of "
                "the same name, and these in folders train, val or test; name a folder or file that has one"
            )
        return found
    if not os.path.exists(text):
        raise UserError(f"{text}: no such file; check the path")
    if text.lower().endswith(LISTS):
        return "table"
    lines = [line for line in read_text(Path(text), "text").split("\n") if line.strip()]
    if TOKEN.fullmatch(lines[0]) or _dialect(lines[0], None) is not None:
        return "flickr"
    raise UserError(
        f"{text}: no captions that are known: the first line is neither name.jpg#0<TAB>caption nor names of columns, "
        f"such as image,caption; a table ends in {', '.join(LISTS)} or .json"
    )


def of_json(path: Path, data: Any) -> str:
    """Which layout a JSON file has: coco, karpathy or table.

    Raises:
        UserError: none of them.
    """
    if has_sentences(data):
        return "karpathy"
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        return "coco"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return "table"
    raise UserError(
        f"{path}: no captions that are known: expected COCO's 'images' and 'annotations', Karpathy's 'images' with "
        f"'sentences', or a list of objects with a file name and a caption, found {json_type(data)}"
    )


def has_sentences(data: Any) -> bool:
    """Whether the content of a JSON file is in Karpathy's layout."""
    images = data.get("images") if isinstance(data, dict) and "annotations" not in data else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def _of_folder(folder: Path) -> str | None:
    """The layout of the files in a folder itself."""
    if any((folder / name).is_file() for name in METADATA):
        return "imagefolder"
    return "webdataset" if any(name.endswith(".tar") for name in os.listdir(folder)) else None


def _split_folders(folder: Path) -> list[Path]:
    return [folder / name for group in SAME for name in group if (folder / name).is_dir()]


def folder_of(folder: Path, split: str) -> Path:
    """Where the split is: the folder named so in this one; or this one, where the data lies in it or none is named so.

    Raises:
        UserError: there are folders of other splits only.
    """
    parts = _split_folders(folder)
    if not parts or _of_folder(folder) is not None:
        return folder
    mine = [folder / name for name in _wanted(split) if (folder / name).is_dir()]
    if not mine:
        raise UserError(
            f"{folder}: no folder of the split {split!r}; there is {', '.join(part.name for part in parts)}"
        )
    return mine[0]


def _wanted(split: str) -> tuple[str, ...]:
    """All names of a split, the one that was given first."""
    return (split, *next((tuple(name for name in group if name != split) for group in SAME if split in group), ()))


def _of_split(path: Path, split: str, splits: Sequence[Any]) -> list[bool]:
    """Which of the entries, whose splits these are, belong to the one that is wanted; one at least."""
    wanted = _wanted(split)
    mine = [one in wanted for one in splits]
    if not any(mine):
        there = ", ".join(sorted({str(one) for one in splits}))
        option = "--split, --data.train_split or --data.val_split"
        raise UserError(f"{path}: nothing of the split {split!r}; there is {there}: choose one by {option}")
    return mine


# ---- the readers


def read_karpathy(path: Path, data: Any, split: str) -> Listed:
    """Karpathy's dataset_coco.json, dataset_flickr8k.json …; "train" is train and restval.

    An image lies at `filepath`/`filename`, or at `filename` where all are in one folder; its id is `cocoid`, or else
    `imgid`. Captions are the sentences' `raw`, or else their `tokens`.
    """
    seen: set[ID] = set()
    entries: list[Entry] = []
    for position, image in enumerate(data["images"]):
        require_fields(path, f"image {position}", image, {"filename": str, "split": str})
        image_id = next((image[key] for key in ("cocoid", "imgid") if key in image), position)
        require_fields(path, f"image {position}", {"id": image_id}, {"id": IDS})
        if image_id in seen:
            raise UserError(f"{path}: image id {image_id!r} comes twice, so its captions are ambiguous; remove one")
        seen.add(image_id)
        sentences, what = image.get("sentences"), f"{path}: image {position}"
        if not isinstance(sentences, list):
            raise UserError(f"{what}: 'sentences' is {json_type(sentences)}, expected a list")
        names = [image["filename"]]
        if isinstance(image.get("filepath"), str):
            names.insert(0, f"{image['filepath']}/{image['filename']}")
        captions = tuple(_sentence(what, sentence) for sentence in sentences)
        entries.append(Entry(image_id, f"{path}: image id {image_id!r}", tuple(names), captions))
    mine = _of_split(path, split, [image["split"] for image in data["images"]])
    return list(itertools.compress(entries, mine)), []


def _sentence(where: str, sentence: Any) -> str:
    if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str):
        return sentence["raw"].strip()
    tokens = sentence.get("tokens") if isinstance(sentence, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{where}: a sentence has neither 'raw', a string, nor 'tokens', a list of strings")
    return " ".join(tokens).strip()


def read_flickr(path: Path, split: str, columns: str | None = None) -> Listed:
    """Flickr8k.token.txt, results_20130124.token …: lines name.jpg#0<TAB>caption; or Kaggle's table captions.txt."""
    lines = read_text(path, "text").split("\n")
    first = next(line for line in lines if line.strip())
    if not TOKEN.fullmatch(first):
        return read_table(path, split, columns)
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        match = TOKEN.fullmatch(line.rstrip())
        if match:
            rows.append(_Row(f"{path}: line {number}", None, match[1], (match[2].strip(),)))
        elif line.strip():
            problem = f"{path}: line {number} is not name.jpg#0<TAB>caption but {line[:60]!r}"
            problems.append(Problem("line in another form", problem))
    return _together(rows), problems


class _Row(NamedTuple):
    """A row of a table: where it is, the image's id if it has one, its name, and captions."""

    where: str
    image_id: ID | None
    name: str
    captions: tuple[str, ...]


def _together(rows: Iterable[_Row]) -> list[Entry]:
    """The rows of each image as one entry, in the order of their first rows."""
    images: dict[ID, list[_Row]] = {}
    for row in rows:
        group = images.setdefault(row.name if row.image_id is None else row.image_id, [])
        if group and group[0].name != row.name:
            was = f"{group[0].name!r} and {row.name!r}"
            raise UserError(f"{row.where}: image id {row.image_id!r} has two files, {was}; number them anew")
        group.append(row)
    return [
        Entry(
            number if group[0].image_id is None else group[0].image_id,
            group[0].where,
            (group[0].name,),
            tuple(caption for row in group for caption in row.captions),
        )
        for number, group in enumerate(images.values())
    ]


def read_table(path: Path, split: str, columns: str | None = None) -> Listed:
    """A table: CSV, TSV, JSON Lines, a JSON list of objects, or Parquet; a row has a caption or a list of them.

    Args:
        path: the file. A CSV has its column names in the first line, and , ; | or tabs between its cells.
        split: where there is a column `split`, only its rows.
        columns: "IMAGE,CAPTION", the names of the columns of file names and captions; None: one of NAMES and CAPTIONS.
            Ids are in a column of NUMBERS, where there is one.

    Raises:
        UserError: no such columns, a cell of another kind, an id of two files, or nothing of the split.
    """
    chosen = None if columns is None else tuple(name.strip() for name in columns.split(","))
    if chosen is not None and (len(chosen) != 2 or not all(chosen)):
        raise UserError(
            f"--columns (or --data.columns) is {columns!r}: expected IMAGE,CAPTION, the names of two columns"
        )
    header, cells, problems = _cells(path, chosen)
    named = _columns(header, chosen)
    if named is None:
        what = "file names and captions" if chosen is None else f"names {chosen[0]!r} and {chosen[1]!r}"
        known = "" if chosen is not None else " with the usual names"
        there = ", ".join(map(repr, header))
        raise UserError(
            f"{path}: no columns of {what}{known} among {there}; name the two by --columns or --data.columns"
        )
    image, caption = named
    number = next((key for key in NUMBERS if key in header and key not in named), None)
    rows: list[_Row] = []
    splits: list[Any] = []
    for where, row in cells:
        name, image_id = row.get(image), row.get(number) if number else None
        if not isinstance(name, str):
            hint = " (images inside a table are not read: write them to files)" if isinstance(name, dict) else ""
            raise UserError(f"{where}: {image!r} is {json_type(name)}, expected a file name{hint}")
        if image_id is not None and (not isinstance(image_id, IDS) or isinstance(image_id, bool)):
            raise UserError(f"{where}: {number!r} is {json_type(image_id)}, expected a whole number or a string")
        captions = _captions(f"{where}: {caption!r}", row.get(caption))
        rows.append(_Row(where, image_id, name.strip(), captions))
        splits.append(row.get("split"))
    entries = _together(rows)
    if "split" in header and rows:
        mine = _of_split(path, split, splits)
        kept = {row.name for row, is_mine in zip(rows, mine, strict=True) if is_mine}
        other = {row.name: row.where for row, is_mine in zip(rows, mine, strict=True) if not is_mine}
        if kept & other.keys():
            name = min(kept & other.keys())
            raise UserError(f"{other[name]}: {name!r} is in two splits; keep an image in one")
        entries = [entry for entry in entries if entry.names[0] in kept]
    return entries, problems


def _columns(header: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, str] | None:
    """The names of the columns of file names and captions."""
    names, captions = ([chosen[0]], [chosen[1]]) if chosen else (NAMES, CAPTIONS)
    image = next((name for name in names if name in header), None)
    caption = next((name for name in captions if name in header and name != image), None)
    return None if image is None or caption is None else (image, caption)


def _cells(path: Path, chosen: Sequence[str] | None) -> tuple[list[str], Iterable[tuple[str, dict]], list[Problem]]:
    """The names of the columns, the rows (where each is, and its cells by column), and the rows of another form."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        names, rows = read_rows(path)
        return names, [(f"{path}: row {n}", row) for n, row in enumerate(rows)], []
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _objects(path, suffix)
    text = read_text(path, "text")
    delimiter = _dialect(text.split("\n", 1)[0], chosen)
    if delimiter is None:  # no such columns: the caller says so, by the likeliest delimiter
        first = text.split("\n", 1)[0]
        delimiter = max("\t,;|", key=first.count)
        return [name.strip() for name in first.split(delimiter)], [], []
    return _csv(path, text, delimiter)


def _dialect(first: str, chosen: Sequence[str] | None) -> str | None:
    """The delimiter with which the first line names both columns."""
    for delimiter in "\t,;|":
        header: list[str] = []
        with contextlib.suppress(csv.Error):  # of older Pythons, where there is a NUL
            header = next(csv.reader([first], delimiter=delimiter), [])
        if _columns([name.strip() for name in header], chosen):
            return delimiter
    return None


def _csv(path: Path, text: str, delimiter: str) -> tuple[list[str], Iterable[tuple[str, dict]], list[Problem]]:
    def parse(quoting: Any) -> list[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
        try:
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except csv.Error as error:
            hint = "a cell that begins with a quotation mark ends with one, and those inside are doubled"
            raise UserError(f"{path}: line {reader.line_num}: {error}; {hint}") from None

    try:
        numbered = parse(csv.QUOTE_MINIMAL)
    except UserError:
        if delimiter != "\t":
            raise
        numbered = parse(csv.QUOTE_NONE)  # many a TSV is written without regard to quotation marks
    header = numbered[0][1]
    rows, problems = [], []
    for line, cells in numbered[1:]:
        if len(cells) > len(header) and header[-1] in CAPTIONS:  # a caption with commas, not quoted, as Kaggle's
            cells[len(header) - 1 :] = [f"{delimiter} ".join(cells[len(header) - 1 :])]
        if len(cells) == len(header):
            rows.append((f"{path}: line {line}", dict(zip(header, cells, strict=True))))
        else:
            count = f"{len(cells)} cells, the first line has {len(header)}"
            problems.append(Problem("row with too few or too many cells", f"{path}: line {line} has {count}"))
    return header, rows, problems


def _objects(path: Path, suffix: str) -> tuple[list[str], Iterable[tuple[str, dict]], list[Problem]]:
    if suffix == ".json":
        rows = [(f"{path}: entry {n}", row) for n, row in enumerate(read_json(path))]
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        rows = [(f"{path}: line {n}", parse_json(path, line, n)) for n, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: is {json_type(row)}, expected an object with a file name and a caption")
    return list(dict.fromkeys(key for _, row in rows for key in row)), rows, []


def _captions(where: str, cell: Any) -> tuple[str, ...]:
    """The captions in a cell: a string, a list of strings, or a list written as a string."""
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        for parse in (json.loads, ast.literal_eval):  # of JSON, or of Python, as pandas writes it
            try:
                found = parse(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list) and all(isinstance(one, str) for one in found):
                return tuple(one.strip() for one in found)
    if cell is None or cell == []:
        return ()
    return tuple(text.strip() for text in texts_of(where, cell))


def texts_of(where: str, value: Any) -> list[str]:
    """One caption or a list of them, each a string or an object with a `caption`.

    Raises:
        UserError: anything else; it begins with `where`.
    """
    values = value if isinstance(value, list) else [value]
    texts: list[Any] = [one.get("caption") if isinstance(one, dict) else one for one in values]
    if not texts:
        raise UserError(f"{where} is an empty list, expected a caption")
    for text in texts:
        if not isinstance(text, str):
            of = "has" if isinstance(value, list) else "is"
            raise UserError(f"{where} {of} {json_type(text)}, expected a string or a list of strings")
    return texts


def metadata_of(folder: Path) -> Path:
    """The table of an imagefolder.

    Raises:
        UserError: there is none, or more than one.
    """
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) != 1:
        names = " and ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one of {', '.join(METADATA)}, found {names}")
    return found[0]


def read_pairs(folder: Path, images: Path) -> Listed:
    """name.txt with a caption in each line for each image name.jpg, at any depth.

    Args:
        folder: where the .txt are.
        images: where the images are, which may be the same folder.
    """
    by_stem: dict[str, list[str]] = {}
    for name in _images(images):
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    texts: dict[str, Path] = {}
    for text in sorted(folder.rglob("*.txt")):
        relative = text.relative_to(folder)
        if text.is_file() and not any(part.startswith(".") for part in relative.parts):
            texts[relative.with_suffix("").as_posix()] = text
    entries: list[Entry] = []
    problems: list[Problem] = []
    for stem, names in sorted(by_stem.items()):
        where = str(images / names[0])
        file = texts.pop(stem) if stem in texts else None
        if len(names) > 1:
            raise UserError(
                f"{where}: {os.path.basename(names[1])!r} has the same name; a caption belongs to one image"
            )
        captions: tuple[str, ...] = ()
        if file is not None and file.stat().st_size:
            captions = tuple(line.strip() for line in file.read_text("utf-8-sig", "replace").strip().splitlines())
        entries.append(Entry(len(entries), where, (names[0],), captions))
    for text in texts.values():
        problems.append(Problem("missing image file", f"{text}: no image of this name in {images}"))
    return entries, problems


def _images(folder: Path) -> Iterator[str]:
    """Images below a folder, as paths in it, with /; hidden ones are skipped."""
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(top, name).relative_to(folder).as_posix()


def read_webdataset(path: str | os.PathLike, albums: bool = False) -> Listed:
    """The samples of shards: an image, and captions in a .txt, one a line, or else in a .json, by one of CAPTIONS.

    With `albums` the image may also be a video.
    """
    entries: list[Entry] = []
    seen: set[ID] = set()
    kinds = SUFFIXES + (VIDEOS if albums else ())
    for shard in shards.expand(path):
        for sample in shards.samples(shard):
            where = f"{shard}: sample {sample.key!r}"
            images = [file for ending, file in sample.files.items() if f".{ending}".endswith(kinds)]
            if len(images) > 1:
                raise UserError(f"{where} has {len(images)} images ({images[1].name!r} …); keep one")
            image = images[0] if images else None
            file = image.file if image else sample.key
            name = f"{os.path.basename(shard)}/{file}"
            image_id = _sample_id(sample.texts, len(entries))
            if image_id in seen:
                raise UserError(f"{where}: image id {image_id!r} comes twice; number the samples anew")
            seen.add(image_id)
            entries.append(Entry(image_id, where, (name,), _sample_captions(where, sample.texts), image))
    return entries, []


def _sample_id(texts: dict[str, bytes], number: int) -> ID:
    """The `image_id` of a sample's .json, as data convert writes it, or its number."""
    for ending, data in texts.items():
        if ending.endswith("json"):
            # Its captions may be in a .txt; if not, they will say so.
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(data)
                image_id = found.get("image_id") if isinstance(found, dict) else None
                if isinstance(image_id, IDS) and not isinstance(image_id, bool):
                    return image_id
    return number


def _sample_captions(where: str, texts: dict[str, bytes]) -> tuple[str, ...]:
    lines: list[str] = []
    for ending, data in texts.items():
        if ending.endswith("txt"):
            lines += [line.strip() for line in data.decode("utf-8-sig", "replace").strip().splitlines()]
    if lines:
        return tuple(lines)
    for ending, data in texts.items():
        if ending.endswith("json"):
            try:
                found = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: its .{ending} is broken JSON: {str(error).splitlines()[0]}") from None
            key = next((key for key in CAPTIONS if isinstance(found, dict) and key in found), None)
            if key is not None:
                return _captions(f"{where}: {key!r}", found[key])
    return ()
