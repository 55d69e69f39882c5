"""The formats of captioned images: detection, and a reader for each. No image is opened."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data import shards
from captioner.data.addresses import StoredImage, is_address
from captioner.data.entries import (
    CAPTION_KEYS,
    FILE_KEYS,
    ID_KEYS,
    CaptionError,
    Entries,
    Entry,
    Problem,
    captions_in_cell,
    first_key,
)
from captioner.data.images import SUFFIXES, VIDEOS, find_images, is_image_name
from captioner.data.label_tools import is_label_studio, is_llava, read_cvat, read_label_studio, read_llava
from captioner.data.parquet import read_rows
from captioner.errors import UserError, counted
from captioner.files import (
    ID,
    IDS,
    decode_text,
    json_type,
    no_contradiction,
    parse_json,
    read_json,
    read_text,
    require_fields,
)

LABEL_TOOLS = ("label_studio", "llava", "cvat")
SPLIT_NAMES = (("train", "restval"), ("val", "validation", "valid", "dev"), ("test",))  # each group is one split
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the table of an imagefolder
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
DELIMITERS = "\t,;|"  # of a CSV
NUMBERED_CAPTION = re.compile(r"(caption|comment|sentence|text)[ _-]?\d+", re.IGNORECASE)  # caption_0, caption_1 …
TOKEN_LINE = re.compile(r"(\S.*)#\d+\t(.*)")  # name.jpg#0<TAB>caption


class Format(NamedTuple):
    """The name of a format, and the content of a .json file, which has to be read to detect its format."""

    name: str
    data: Any = None


# ---- which format


def detect_format(path: str | os.PathLike) -> Format:
    """The format of a file, folder or address: coco, karpathy, flickr, table, pairs, imagefolder, webdataset, …"""
    text = os.fspath(path)
    if os.path.isfile(text) and text.lower().endswith(".json"):
        data = read_json(Path(text))
        return Format(_json_format(text, data), data)
    if is_address(text) or shards.are_shards(text):
        return Format("webdataset")
    if text.lower().endswith(".parquet") and not os.path.exists(text) and glob.has_magic(text):
        return Format("parquet")
    if os.path.isdir(text):
        return Format(_folder_format(Path(text)))
    if text.lower().endswith(TABLE_SUFFIXES):
        return Format("table")
    if text.lower().endswith(".xml"):
        return Format("cvat")
    first = next(line for line in read_text(Path(text), "text").split("\n") if line.strip())
    if TOKEN_LINE.fullmatch(first) or find_delimiter(first) is not None:
        return Format("flickr")
    raise UserError(
        f"{text}: unknown format of captions: the first line is neither name.jpg#0<TAB>caption nor names of columns, "
        f"such as image,caption; a table ends in {', '.join(TABLE_SUFFIXES)} or .json"
    )


def _json_format(path: str, data: Any) -> str:
    if is_karpathy(data):
        return "karpathy"
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        return "coco"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return "label_studio" if is_label_studio(data[0]) else "llava" if is_llava(data[0]) else "table"
    raise UserError(
        f"{path}: unknown format of captions: expected COCO's 'images' and 'annotations', Karpathy's 'images' with "
        f"'sentences', or a list of objects with a file name and a caption, found {json_type(data)}"
    )


def is_karpathy(data: Any) -> bool:
    """Whether the content of a JSON file is in Karpathy's format."""
    images = data.get("images") if isinstance(data, dict) and "annotations" not in data else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def _folder_format(folder: Path) -> str:
    for each in (folder, *_split_folders(folder)):
        if (name := _own_format(each)) is not None:
            return name
    if any(folder.rglob("*.txt")):
        return "pairs"
    raise UserError(
        f"{folder}: no data set in this folder: looked for {', '.join(METADATA)}, *.tar, images with a .txt of "
        "the same name, and these in folders train, val or test; name a folder or file that has one"
    )


def _own_format(folder: Path) -> str | None:
    """The format of a folder by the files directly in it; None for pairs, which may be at any depth, or no data."""
    if any((folder / name).is_file() for name in METADATA):
        return "imagefolder"
    if any(name.endswith(".tar") for name in os.listdir(folder)):
        return "webdataset"
    return "parquet" if any((*folder.glob("*.parquet"), *folder.glob("data/*.parquet"))) else None


# ---- which split


def _split_folders(folder: Path) -> list[Path]:
    return [folder / name for group in SPLIT_NAMES for name in group if (folder / name).is_dir()]


def _folder_of_split(folder: Path, split: str) -> Path:
    """The folder in this one with the name of the split; this one if it has data itself or no folder of any split."""
    folders = _split_folders(folder)
    if not folders or _own_format(folder) is not None:
        return folder
    for name in _split_names(split):
        if folder / name in folders:
            return folder / name
    there = ", ".join(each.name for each in folders)
    raise UserError(f"{folder}: no folder of the split {split!r}; there is {there}")


def _split_names(split: str) -> tuple[str, ...]:
    """All names of a split, the given one first: "val" → ("val", "validation", "valid", "dev")."""
    return (split, *(name for group in SPLIT_NAMES if split in group for name in group if name != split))


def _in_split(path: Path, split: str, splits: Sequence[Any]) -> list[bool]:
    """Whether each image belongs to the split; `splits` are those of the images. UserError if none does."""
    names = _split_names(split)
    mine = [one in names for one in splits]
    if not any(mine):
        there = ", ".join(sorted({str(one) for one in splits}))
        option = "--split, --data.train_split or --data.val_split"
        raise UserError(f"{path}: nothing of the split {split!r}; there is {there}: choose one by {option}")
    return mine


# ---- the readers


def read_entries(
    path: str,
    layout: Format,
    images: str | os.PathLike | None = None,
    split: str = "train",
    columns: str | None = None,
    albums: bool = False,
    names_needed: bool = True,
) -> tuple[Entries, Path | None]:
    """Read the entries of a path in the format that :func:`detect_format` found.

    The other arguments are those of :func:`captioner.data.annotations.read_examples`; `images` is the folder of the
    file by default. Unless `names_needed`, images may have no file names in COCO's format; an entry then has no names.

    Returns:
        The entries, and the folder that their names are relative to; None where the images are in shards.
    """
    file = Path(path)
    _check_columns_and_split(path, layout, split, columns)
    if layout.name == "webdataset":
        in_folder = not is_address(path) and file.is_dir()
        return read_webdataset(_folder_of_split(file, split) if in_folder else path, albums), None
    if layout.name in ("imagefolder", "pairs"):
        file = folder = _folder_of_split(file, split)
    else:
        folder = file.parent
    folder = folder if images is None else Path(images)
    match layout.name:
        case "coco":
            return read_coco(file, layout.data, names_needed, split, columns), folder
        case "karpathy":
            return read_karpathy(file, layout.data, split), folder
        case "flickr":
            return read_flickr(file, split, columns), folder
        case "label_studio":
            return _grouped([read_label_studio(file, layout.data)]), folder
        case "llava":
            return _grouped([read_llava(file, layout.data)]), folder
        case "cvat":
            return _grouped([read_cvat(file)]), folder
        case "pairs":
            return read_pairs(file, folder), folder
        case "parquet":
            parts = [_read_rows(part, split, columns, has_split=False) for part in _parquet_files(file, split)]
            return _grouped(parts), folder
        case "imagefolder":
            tables = [file / name for name in METADATA if (file / name).is_file()]
            if len(tables) != 1:
                raise UserError(f"{file}: expected one of {', '.join(METADATA)}, found {len(tables)} of them")
            file = tables[0]
    return read_table(file, split, columns), folder


def read_coco_images(path: Path) -> dict[ID, str]:
    """The file names of the images of COCO's JSON by id; it needs no annotations, as image_info_test2014.json."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise UserError(f"{path}: not COCO JSON: expected the list 'images', found {json_type(data)}")
    _check_images(path, data["images"], {"id": IDS, "file_name": str})
    return {image["id"]: image["file_name"] for image in data["images"]}


def _check_columns_and_split(path: str, layout: Format, split: str, columns: str | None) -> None:
    """UserError for columns or a split, other than the default ones, of a format that has none."""
    if columns is not None and layout.name in ("karpathy", "pairs", "webdataset", *LABEL_TOOLS):
        raise UserError(
            f"{path}: --columns (or --data.columns) is {columns!r}, and {layout.name} has no columns: leave it out"
        )
    if not has_splits(path, layout) and split not in ("train", "val"):
        raise UserError(f"{path}: has no splits, and --split (or --data.train_split …) is {split!r}: leave it out")


def has_splits(path: str, layout: Format) -> bool:
    """Whether a data set may have several splits to choose from."""
    if layout.name == "coco":
        images = layout.data["images"]
        return isinstance(images, list) and any(isinstance(image, dict) and "split" in image for image in images)
    if layout.name in ("pairs", "webdataset"):
        return os.path.isdir(path) and bool(_split_folders(Path(path)))
    return layout.name not in LABEL_TOOLS


def _parquet_files(path: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in a folder or of a pattern: train-00000-of-00002.parquet, train/0.parquet …

    All files, if none is named like a split, as Hugging Face's datasets name theirs.
    """
    found = (
        sorted(path.glob("**/*.parquet")) if path.is_dir() else [Path(name) for name in sorted(glob.glob(str(path)))]
    )
    if not found:
        raise UserError(f"{path}: no such Parquet file; check the path")
    named = {file: name for file in found for name in itertools.chain(*SPLIT_NAMES) if _is_of_split(file, name)}
    if not named or not path.is_dir():
        return found
    mine = _in_split(path, split, list(named.values()))
    return list(itertools.compress(named, mine))


def _is_of_split(file: Path, name: str) -> bool:
    return file.parent.name == name or re.match(rf"{name}(?![a-z])", file.name) is not None


def _two_columns(columns: str) -> tuple[str, str]:
    image, *captions = [name.strip() for name in columns.split(",")]
    if len(captions) != 1 or not image or not captions[0]:
        raise UserError(
            f"--columns (or --data.columns) is {columns!r}: expected IMAGE,CAPTION, two keys of COCO's JSON"
        )
    return image, captions[0]


def read_coco(
    path: Path, data: Any, names_needed: bool = True, split: str | None = None, columns: str | None = None
) -> Entries:
    """COCO captions (https://cocodataset.org/#format-data); unless `names_needed`, images may have no file names.

    Of images with a `split` only those of this split are read. `columns` are the key of the file names in images and
    that of the captions in annotations, such as file_name,tokenized_caption of STAIR.
    """
    file_key, caption_key = ("file_name", "caption") if columns is None else _two_columns(columns)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        found = json_type(data)
        raise UserError(f"{path}: not COCO captions: expected the lists 'images' and 'annotations', found {found}")
    fields: dict[str, Any] = {"id": IDS, file_key: str} if names_needed else {"id": IDS}
    _check_images(path, data["images"], fields)
    captions, problems = _captions_by_image(path, data["annotations"], caption_key)
    entries = []
    splits = [image.get("split") for image in data["images"]]
    mine = _in_split(path, split, splits) if split is not None and any(splits) else [True] * len(splits)
    others = {image["id"] for image, is_mine in zip(data["images"], mine, strict=True) if not is_mine}
    captions = {image: texts for image, texts in captions.items() if image not in others}
    for image in itertools.compress(data["images"], mine):
        names = (image[file_key],) if isinstance(image.get(file_key), str) else ()
        texts = captions.pop(image["id"], [])
        entries.append(Entry(image["id"], f"{path}: image id {image['id']!r}", names, tuple(texts)))
    kinds = {str(image["id"]): json_type(image["id"]) for image in data["images"]} if captions else {}
    for image_id in captions:
        about = f"{path}: captions for image id {image_id!r}, not in its 'images'"
        if str(image_id) in kinds:
            about += f", where it is {kinds[str(image_id)]}: write both in one way"
        problems.append(Problem("unknown image id", about))
    return Entries(entries, problems)


def _captions_by_image(path: Path, annotations: list[Any], key: str) -> tuple[dict[ID, list[str]], list[Problem]]:
    """The captions of COCO's annotations by image id, in the order of the file; those that are no text are problems."""
    from pycocotools.coco import COCO

    problems, bad = [], set()
    for position, entry in enumerate(annotations):
        if not _is_annotation(entry, key):
            try:
                require_fields(path, f"annotation {position}", entry, {"image_id": IDS, key: str, "id": IDS})
            except UserError as error:
                if not isinstance(entry, dict) or key not in entry or not isinstance(entry.get("image_id"), IDS):
                    raise
                if isinstance(entry[key], str):  # the id is wrong
                    raise
                problems.append(Problem("caption that is no text", str(error)))
                bad.add(position)
    annotations = [entry for position, entry in enumerate(annotations) if position not in bad]
    numbers = [entry["id"] for entry in annotations if entry.get("id") is not None]
    _check_unique(path, "annotation id", numbers)
    if len(numbers) < len(annotations):  # COCO needs them
        annotations = [{**entry, "id": position} for position, entry in enumerate(annotations)]
    coco = COCO()
    coco.dataset = {"images": [], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return {image: [entry[key] for entry in group] for image, group in coco.imgToAnns.items()}, problems


def _is_annotation(entry: Any, key: str) -> bool:
    """Whether an annotation has valid fields; faster than require_fields, for millions of them."""
    if not isinstance(entry, dict) or type(entry.get("image_id")) not in IDS or type(entry.get(key)) is not str:
        return False
    number = entry.get("id")
    return number is None or type(number) in IDS


def _check_images(path: Path, images: list[Any], fields: dict[str, Any]) -> None:
    """UserError unless COCO's images have these fields, and ids of their own."""
    for position, image in enumerate(images):
        require_fields(path, f"image {position}", image, fields)
    _check_unique(path, "image id", [image["id"] for image in images])


def _check_unique(path: Path | str, kind: str, ids: Sequence[ID]) -> None:
    seen: set[ID] = set()
    for one in ids:
        if one in seen:
            raise UserError(f"{path}: {kind} {one!r} comes twice; remove one or give it another id")
        seen.add(one)


def read_karpathy(path: Path, data: Any, split: str) -> Entries:
    """Karpathy's dataset_coco.json, dataset_flickr8k.json …; "train" is train and restval.

    An image is at `filepath`/`filename`, or at `filename` where all are in one folder. Captions are the sentences'
    `raw`, or else their `tokens`.
    """
    entries: list[Entry] = []
    for position, image in enumerate(data["images"]):
        where = f"image {position}"
        require_fields(path, where, image, {"filename": str, "split": str})
        key = first_key(ID_KEYS, image)
        image_id = position if key is None else image[key]
        require_fields(path, where, {"id": image_id}, {"id": IDS})
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise UserError(f"{path}: {where}: 'sentences' is {json_type(sentences)}, expected a list")
        names = [image["filename"]]
        if isinstance(image.get("filepath"), str):
            names.insert(0, f"{image['filepath']}/{image['filename']}")
        captions = tuple(_sentence(f"{path}: {where}", sentence) for sentence in sentences)
        entries.append(Entry(image_id, f"{path}: image id {image_id!r}", tuple(names), captions))
    _check_unique(path, "image id", [entry.image_id for entry in entries])
    mine = _in_split(path, split, [image["split"] for image in data["images"]])
    return Entries(list(itertools.compress(entries, mine)), [])


def _sentence(where: str, sentence: Any) -> str:
    if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str):
        return sentence["raw"]
    tokens = sentence.get("tokens") if isinstance(sentence, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{where}: a sentence has neither 'raw', a string, nor 'tokens', a list of strings")
    return " ".join(tokens)


def read_flickr(path: Path, split: str = "train", columns: str | None = None) -> Entries:
    """Flickr8k.token.txt, results_20130124.token …: lines name.jpg#0<TAB>caption; or Kaggle's table captions.txt."""
    lines = read_text(path, "text").split("\n")
    if not TOKEN_LINE.fullmatch(next(line for line in lines if line.strip())):
        return read_table(path, split, columns)
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if match := TOKEN_LINE.fullmatch(line):
            rows.append(Entry(None, f"{path}: line {number}", (match[1],), (match[2],)))
        elif line.strip():
            problem = f"{path}: line {number} is not name.jpg#0<TAB>caption but {line[:60]!r}"
            problems.append(Problem("line in another form", problem))
    return Entries(_group_rows(rows), problems)


def read_pairs(folder: Path, images: Path) -> Entries:
    """For each image name.jpg in `images`, at any depth, name.txt in `folder` with a caption per line."""
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; check the path")
    text_of: dict[Path, Path] = {}  # by the path without suffix
    for text in sorted(folder.rglob("*.txt")):
        relative = text.relative_to(folder)
        if text.is_file() and not any(part.startswith(".") for part in relative.parts):
            text_of[relative.with_suffix("")] = text
    entries: dict[Path, Entry] = {}
    for image in find_images([str(images)]):
        name = Path(image).relative_to(images)
        stem = name.with_suffix("")
        if stem in entries:
            raise UserError(f"{image}: {entries[stem].names[0]!r} has the same name; a caption belongs to one image")
        captions = _lines(text_of[stem].read_bytes(), text_of.pop(stem)) if stem in text_of else ()
        entries[stem] = Entry(len(entries), str(image), (name.as_posix(),), captions)
    problems = [
        Problem("missing image file", f"{text}: no image of this name in {images}") for text in text_of.values()
    ]
    return Entries(list(entries.values()), problems)


def _lines(text: bytes, where: object) -> tuple[str, ...]:
    """The lines of a text without blank ones at its ends."""
    return tuple(decode_text(text, where).strip().splitlines())


def read_webdataset(path: str | os.PathLike, albums: bool = False) -> Entries:
    """The samples of shards: an image, and captions in a .txt, one per line, or else in a .json, under a CAPTION_KEYS.

    With `albums` the image may also be a video. The id is the `image_id` in the .json, or else the sample's number.
    """
    entries: list[Entry] = []
    suffixes = SUFFIXES + (VIDEOS if albums else ())
    for shard in shards.expand(path):
        for sample in shards.samples(shard):
            where = f"{shard}: sample {sample.key!r}"
            images = [file for ending, file in sample.files.items() if f".{ending}".endswith(suffixes)]
            if len(images) > 1:
                raise UserError(f"{where} has {len(images)} images ({images[1].name!r} …); keep one")
            image = images[0] if images else None
            name = f"{os.path.basename(shard)}/{image.file if image else sample.key}"
            image_id, captions = _parse_sample(where, sample.texts)
            entries.append(Entry(len(entries) if image_id is None else image_id, where, (name,), captions, image))
    _check_unique(os.fspath(path), "image id", [entry.image_id for entry in entries])
    return Entries(entries, [])


def _parse_sample(where: str, texts: dict[str, bytes]) -> tuple[ID | None, tuple[str, ...]]:
    """The id in a sample's .json, if there is one, and the sample's captions."""
    image_id = None
    lines = [_lines(data, f"{where}.{ending}") for ending, data in texts.items() if ending.endswith("txt")]
    captions = tuple(itertools.chain.from_iterable(lines))
    for ending, data in texts.items():
        if not ending.endswith("json"):
            continue
        try:
            found = json.loads(decode_text(data, f"{where}.{ending}"), object_pairs_hook=no_contradiction)
        except (ValueError, RecursionError) as error:
            if captions:  # they are in a .txt
                continue
            raise UserError(f"{where}: its .{ending} is broken JSON: {str(error).splitlines()[0]}") from None
        if not isinstance(found, dict):
            continue
        number = found.get("image_id")
        if image_id is None and isinstance(number, IDS) and not isinstance(number, bool):
            image_id = number
        key = first_key(CAPTION_KEYS, found)
        if key is not None and not captions:
            captions = captions_in_cell(f"{where}: {key!r}", found[key])
    return image_id, captions


# ---- tables: CSV, TSV, JSON Lines, a JSON list of objects, Parquet


# The names of the columns; location and cells by column of each row; the rows that do not fit.
_Table = tuple[Sequence[str], list[tuple[str, dict[str, Any]]], list[Problem]]


def read_table(path: Path, split: str, columns: str | None = None) -> Entries:
    """Read a table whose rows have a file name and a caption or a list of captions; the rows of an image become one.

    The first line of a CSV has the column names, and its cells are separated by , ; | or tabs. `columns` are
    "IMAGE,CAPTION", or else the first of FILE_KEYS and of CAPTION_KEYS; a column of ID_KEYS has the ids, if there is
    one. Of a table with a column `split`, only the images of this split are read. Captions in several columns belong
    to one image: all that `columns` names after IMAGE, or caption_0, caption_1 …
    """
    return _grouped([_read_rows(path, split, columns)])


def _grouped(parts: Sequence[Entries]) -> Entries:
    """The rows of one table or several as the entries of images."""
    rows = [row for part in parts for row in part.entries]
    return Entries(_group_rows(rows), [problem for part in parts for problem in part.problems])


def _read_rows(path: Path, split: str, columns: str | None, has_split: bool = True) -> Entries:
    """An entry for each row of :func:`read_table`; with `has_split` of this split, if there is a column of splits."""
    chosen = None if columns is None else [name.strip() for name in columns.split(",")]
    if chosen is not None and (len(chosen) < 2 or not all(chosen)):
        raise UserError(
            f"--columns (or --data.columns) is {columns!r}: expected IMAGE,CAPTION, the names of two columns or more"
        )
    header, table, problems = _load(path, chosen)
    found = _columns(header, chosen) or (None if chosen else _columns_of_named_ids(header, table))
    if found is None:
        what = f"names {', '.join(map(repr, chosen))}" if chosen else "file names and captions with the usual names"
        there = ", ".join(map(repr, header))
        raise UserError(f"{path}: no columns of {what} among {there}; name them by --columns or --data.columns")
    image, captions = found
    number = first_key([key for key in ID_KEYS if key not in (image, *captions)], header)
    rows, kept_table = [], []
    for where, cells in table:
        try:
            rows.append(_row(where, cells, image, captions, number, numbered=chosen is not None))
            kept_table.append((where, cells))
        except CaptionError as error:
            problems.append(Problem("caption that is no text", str(error)))
    if "split" in header and rows and has_split:
        mine = _in_split(path, split, [cells.get("split") for _, cells in kept_table])
        kept = {row.names for row in itertools.compress(rows, mine)}
        for row, is_mine in zip(rows, mine, strict=True):
            if not is_mine and row.names in kept:
                raise UserError(f"{row.where}: {row.names[0]!r} is in two splits; keep an image in one")
        rows = [*itertools.compress(rows, mine)]
    return Entries(rows, problems)


def _load(path: Path, columns: Sequence[str] | None) -> _Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        header, rows = read_rows(str(path))
        return header, [(f"{path}: row {n}", row) for n, row in enumerate(rows)], []
    if suffix == ".json":
        table = [(f"{path}: entry {n}", row) for n, row in enumerate(read_json(path))]
    elif suffix in (".jsonl", ".ndjson"):
        lines = enumerate(read_text(path).split("\n"), start=1)
        table = [(f"{path}: line {n}", parse_json(path, line, n)) for n, line in lines if line.strip()]
    else:
        return _load_csv(path, columns)
    for where, row in table:
        if not isinstance(row, dict):
            raise UserError(f"{where}: is {json_type(row)}, expected an object with a file name and a caption")
    return list(dict.fromkeys(key for _, row in table for key in row)), table, []


def _load_csv(path: Path, columns: Sequence[str] | None) -> _Table:
    text = read_text(path, "text")
    first = text.split("\n", 1)[0]
    delimiter = find_delimiter(first, columns) or max(DELIMITERS, key=first.count)
    try:
        (_, header), *lines = _csv_rows(path, text, delimiter, csv.QUOTE_MINIMAL)
    except UserError:
        if delimiter != "\t":
            raise
        (_, header), *lines = _csv_rows(path, text, delimiter, csv.QUOTE_NONE)  # many TSVs do not quote quotation marks
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise UserError(f"{path}: line 1: several columns are named {twice!r}; rename or remove all but one")
    rows, problems = [], []
    for line, cells in lines:
        if len(cells) > len(header) and header[-1] in CAPTION_KEYS:  # a caption with commas, not quoted, as Kaggle's
            cells[len(header) - 1 :] = [f"{delimiter} ".join(cells[len(header) - 1 :])]
        if len(cells) == len(header):
            rows.append((f"{path}: line {line}", dict(zip(header, cells, strict=True))))
        else:
            count = f"{counted(len(cells), 'cell')}, the first line has {len(header)}"
            problems.append(Problem("row with too few or too many cells", f"{path}: line {line} has {count}"))
    return header, rows, problems


def _csv_rows(path: Path, text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]]:
    """The stripped cells of each row that is not empty, with the number of its (last) line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        hint = "a cell that begins with a quotation mark ends with one, and those inside are doubled"
        raise UserError(f"{path}: line {reader.line_num}: {error}; {hint}") from None


def find_delimiter(header: str, columns: Sequence[str] | None = None) -> str | None:
    """The delimiter with which the first line of a CSV names a column of file names and one of captions."""
    for delimiter in DELIMITERS:
        names: list[str] = []
        with contextlib.suppress(csv.Error):  # Python before 3.11 refuses NUL
            names = next(csv.reader([header], delimiter=delimiter), [])
        if _columns([name.strip() for name in names], columns):
            return delimiter
    return None


def _columns(header: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, list[str]] | None:
    """The column of file names and those of captions, if they exist: the usual ones, the likeliest first, or all."""
    if chosen:
        return (chosen[0], list(chosen[1:])) if all(name in header for name in chosen) else None
    image = first_key(FILE_KEYS, header)
    captions = [name for name in CAPTION_KEYS if name in header and name != image]
    captions = captions or [name for name in header if NUMBERED_CAPTION.fullmatch(name)]
    return None if image is None or not captions else (image, captions)


def _columns_of_named_ids(header: Sequence[str], table: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """The columns of a table whose ids are the file names, as AI Challenger's."""
    key = first_key(ID_KEYS, header)
    captions = [name for name in CAPTION_KEYS if name in header]
    named = key is not None and bool(table) and is_image_name(str(table[0][1].get(key)))
    return (key, captions) if named and captions else None


def _row(
    where: str, cells: dict[str, Any], image: str, columns: list[str], number: str | None, numbered: bool
) -> Entry:
    """A row of a table: its captions are those of all columns if they are `numbered`, else of the first that has any.

    CaptionError if one is no text.
    """
    name, image_id = cells.get(image), cells.get(number) if number else None
    stored = name if isinstance(name, StoredImage) else None
    name = stored.file_name if stored else name
    if not isinstance(name, str):
        hint = " (images inside a table are read from Parquet alone)" if isinstance(name, dict) else ""
        raise UserError(f"{where}: {image!r} is {json_type(name)}, expected a file name{hint}")
    if image_id is not None and (not isinstance(image_id, IDS) or isinstance(image_id, bool)):
        raise UserError(f"{where}: {number!r} is {json_type(image_id)}, expected a whole number or a string")
    found = [captions_in_cell(f"{where}: {column!r}", cells.get(column)) for column in columns]
    if not numbered and not NUMBERED_CAPTION.fullmatch(columns[0]):
        found = [next(filter(None, found), ())]
    return Entry(image_id, where, (name.strip(),), tuple(itertools.chain.from_iterable(found)), stored)


def _group_rows(rows: Iterable[Entry]) -> list[Entry]:
    """One entry per image, with the captions of all of its rows, in the order of the first rows.

    Rows with one id, or without ids one file name (in one Parquet file, if that has the images), are one image.
    """
    images: dict[Any, list[Entry]] = {}
    for row in rows:
        name = (str(row.image).rpartition("#")[0], row.names[0]) if row.image else row.names[0]
        group = images.setdefault(name if row.image_id is None else row.image_id, [])
        if group and group[0].names != row.names:
            both = f"{group[0].names[0]!r} and {row.names[0]!r}"
            raise UserError(f"{row.where}: image id {row.image_id!r} has two files, {both}; give each its own id")
        group.append(row)
    entries = []
    for number, group in enumerate(images.values()):
        image_id = number if group[0].image_id is None else group[0].image_id
        captions = tuple(caption for row in group for caption in row.captions)
        entries.append(replace(group[0], image_id=image_id, captions=captions))
    return entries
