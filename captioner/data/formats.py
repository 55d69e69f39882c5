"""The layouts of captioned images: which one a path has, and a reader for each. No image is opened."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captioner.data import shards
from captioner.data.addresses import is_address
from captioner.data.entries import (
    CAPTION_KEYS,
    ID_KEYS,
    SPLIT_NAMES,
    Entries,
    Entry,
    Problem,
    first_key,
    in_split,
    split_names,
)
from captioner.data.images import SUFFIXES, VIDEOS
from captioner.data.tables import TABLE_SUFFIXES, Row, captions_in_cell, find_delimiter, group_rows, read_table
from captioner.errors import UserError
from captioner.files import ID, IDS, json_type, read_json, read_text, require_fields

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the table of an imagefolder
TOKEN_LINE = re.compile(r"(\S.*)#\d+\t(.*)")  # name.jpg#0<TAB>caption


class Format(NamedTuple):
    """The name of a layout, and the content of a .json file, which has to be read to tell its layout."""

    name: str
    data: Any = None


def detect_format(path: str | os.PathLike) -> Format:
    """The layout of a file, folder or address: coco, karpathy, flickr, table, pairs, imagefolder or webdataset.

    Raises:
        UserError: none of them.
    """
    text = os.fspath(path)
    if os.path.isfile(text) and text.lower().endswith(".json"):
        data = read_json(Path(text))
        return Format(_json_format(text, data), data)
    if is_address(text) or shards.are_shards(text):
        return Format("webdataset")
    if os.path.isdir(text):
        return Format(_folder_format(Path(text)))
    if not os.path.exists(text):
        raise UserError(f"{text}: no such file; check the path")
    if text.lower().endswith(TABLE_SUFFIXES):
        return Format("table")
    first = next(line for line in read_text(Path(text), "text").split("\n") if line.strip())
    if TOKEN_LINE.fullmatch(first) or find_delimiter(first) is not None:
        return Format("flickr")
    raise UserError(
        f"{text}: unknown layout of captions: the first line is neither name.jpg#0<TAB>caption nor names of columns, "
        f"such as image,caption; a table ends in {', '.join(TABLE_SUFFIXES)} or .json"
    )


def _json_format(path: str, data: Any) -> str:
    if is_karpathy(data):
        return "karpathy"
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        return "coco"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return "table"
    raise UserError(
        f"{path}: unknown layout of captions: expected COCO's 'images' and 'annotations', Karpathy's 'images' with "
        f"'sentences', or a list of objects with a file name and a caption, found {json_type(data)}"
    )


def is_karpathy(data: Any) -> bool:
    """Whether the content of a JSON file is in Karpathy's layout."""
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
    """The layout of a folder by the files directly in it; None for pairs, which may be at any depth, or no data."""
    if any((folder / name).is_file() for name in METADATA):
        return "imagefolder"
    return "webdataset" if any(name.endswith(".tar") for name in os.listdir(folder)) else None


def _split_folders(folder: Path) -> list[Path]:
    return [folder / name for group in SPLIT_NAMES for name in group if (folder / name).is_dir()]


def _folder_of_split(folder: Path, split: str) -> Path:
    """The folder in this one with the name of the split; this one if it has data itself or no folder of any split."""
    folders = _split_folders(folder)
    if not folders or _own_format(folder) is not None:
        return folder
    mine = [folder / name for name in split_names(split) if (folder / name).is_dir()]
    if not mine:
        there = ", ".join(each.name for each in folders)
        raise UserError(f"{folder}: no folder of the split {split!r}; there is {there}")
    return mine[0]


# ---- the readers


def read_entries(
    path: str,
    layout: Format,
    images: str | os.PathLike | None = None,
    split: str = "train",
    columns: str | None = None,
    albums: bool = False,
) -> tuple[Entries, Path | None]:
    """Read the entries of a path in the layout that :func:`detect_format` found.

    The other arguments are those of :func:`captioner.data.annotations.read_examples`; `images` is the folder of the
    file by default.

    Returns:
        The entries, and the folder that their names are relative to; None where the images are in shards.

    Raises:
        UserError: the file is not in this layout, or has nothing of the split.
    """
    file = Path(path)
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
            return read_coco(file, layout.data), folder
        case "karpathy":
            return read_karpathy(file, layout.data, split), folder
        case "flickr":
            return read_flickr(file, split, columns), folder
        case "pairs":
            return read_pairs(file, folder), folder
        case "imagefolder":
            file = _metadata_file(file)
    return read_table(file, split, columns), folder


def read_coco(path: Path, data: Any) -> Entries:
    """COCO captions (https://cocodataset.org/#format-data): `data` has the lists `images` and `annotations`."""
    images, captions = parse_coco(path, data, {"id": IDS, "file_name": str})
    entries = []
    for image in images:
        texts = captions.pop(image["id"], [])
        entries.append(Entry(image["id"], f"{path}: image id {image['id']!r}", (image["file_name"],), tuple(texts)))
    unknown = [
        Problem("unknown image id", f"{path}: captions for image id {image_id!r}, not in its 'images'")
        for image_id in captions
    ]
    return Entries(entries, unknown)


def parse_coco(path: Path, data: Any, fields: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[ID, list[str]]]:
    """The `images` of a captions file, and captions by image id, both in the order of the file.

    fields: the fields of each image that are required, with their types.

    Raises:
        UserError: no COCO captions, or an id of two images or of two annotations.
    """
    from pycocotools.coco import COCO

    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            found = json_type(data) if not isinstance(data, dict) else f"no list {key!r}"
            raise UserError(f"{path}: not COCO captions: expected the lists 'images' and 'annotations', found {found}")
    for position, image in enumerate(data["images"]):
        require_fields(path, f"image {position}", image, fields)
    annotations = data["annotations"]
    for position, entry in enumerate(annotations):
        if not _is_annotation(entry):
            require_fields(path, f"annotation {position}", entry, {"image_id": IDS, "caption": str, "id": IDS})
    numbers = [entry["id"] for entry in annotations if entry.get("id") is not None]
    if len(numbers) < len(annotations):  # COCO needs them
        annotations = [{**entry, "id": position} for position, entry in enumerate(annotations)]

    if (twice := _repeated(image["id"] for image in data["images"])) is not None:
        raise UserError(f"{path}: image id {twice!r} comes twice, so its captions are ambiguous; remove one")
    if (twice := _repeated(numbers)) is not None:
        raise UserError(f"{path}: annotation id {twice!r} comes twice; remove one or give it another id")

    coco = COCO()
    coco.dataset = {"images": data["images"], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return data["images"], {key: [entry["caption"] for entry in group] for key, group in coco.imgToAnns.items()}


def _is_annotation(entry: Any) -> bool:
    """Whether an annotation has valid fields; faster than require_fields, for millions of them."""
    if not isinstance(entry, dict) or type(entry.get("image_id")) not in IDS or type(entry.get("caption")) is not str:
        return False
    number = entry.get("id")
    return number is None or type(number) in IDS


def _repeated(ids: Iterable[ID]) -> ID | None:
    """The first id that comes a second time."""
    seen: set[ID] = set()
    return next((one for one in ids if one in seen or seen.add(one)), None)  # type: ignore[func-returns-value]


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
    if (twice := _repeated(entry.image_id for entry in entries)) is not None:
        raise UserError(f"{path}: image id {twice!r} comes twice, so its captions are ambiguous; remove one")
    mine = in_split(path, split, [image["split"] for image in data["images"]])
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
            rows.append(Row(f"{path}: line {number}", None, match[1], (match[2],)))
        elif line.strip():
            problem = f"{path}: line {number} is not name.jpg#0<TAB>caption but {line[:60]!r}"
            problems.append(Problem("line in another form", problem))
    return Entries(group_rows(rows), problems)


def _metadata_file(folder: Path) -> Path:
    """The table of an imagefolder."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) != 1:
        names = " and ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one of {', '.join(METADATA)}, found {names}")
    return found[0]


def read_pairs(folder: Path, images: Path) -> Entries:
    """For each image name.jpg in `images`, at any depth, name.txt in `folder` with a caption per line."""
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; check the path")
    names_of: dict[str, list[str]] = {}  # by the path without suffix
    for name in _image_names(images):
        names_of.setdefault(os.path.splitext(name)[0], []).append(name)
    text_of: dict[str, Path] = {}
    for text in sorted(folder.rglob("*.txt")):
        relative = text.relative_to(folder)
        if text.is_file() and not any(part.startswith(".") for part in relative.parts):
            text_of[relative.with_suffix("").as_posix()] = text
    entries: list[Entry] = []
    for stem, names in sorted(names_of.items()):
        where = str(images / names[0])
        if len(names) > 1:
            other = os.path.basename(names[1])
            raise UserError(f"{where}: {other!r} has the same name; a caption belongs to one image")
        captions = _lines(text_of.pop(stem).read_bytes()) if stem in text_of else ()
        entries.append(Entry(len(entries), where, (names[0],), captions))
    problems = [
        Problem("missing image file", f"{text}: no image of this name in {images}") for text in text_of.values()
    ]
    return Entries(entries, problems)


def _image_names(folder: Path) -> Iterator[str]:
    """Images below a folder, as paths in it, with /; hidden ones are skipped."""
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(top, name).relative_to(folder).as_posix()


def _lines(text: bytes) -> tuple[str, ...]:
    """The lines of a UTF-8 text without blank ones at its ends."""
    return tuple(text.decode("utf-8-sig", "replace").strip().splitlines())


def read_webdataset(path: str | os.PathLike, albums: bool = False) -> Entries:
    """The samples of shards: an image, and captions in a .txt, one per line, or else in a .json, under a CAPTION_KEYS.

    With `albums` the image may also be a video.
    """
    entries: list[Entry] = []
    seen: set[ID] = set()
    suffixes = SUFFIXES + (VIDEOS if albums else ())
    for shard in shards.expand(path):
        for sample in shards.samples(shard):
            where = f"{shard}: sample {sample.key!r}"
            images = [file for ending, file in sample.files.items() if f".{ending}".endswith(suffixes)]
            if len(images) > 1:
                raise UserError(f"{where} has {len(images)} images ({images[1].name!r} …); keep one")
            image = images[0] if images else None
            name = f"{os.path.basename(shard)}/{image.file if image else sample.key}"
            image_id = _sample_id(sample.texts, len(entries))
            if image_id in seen:
                raise UserError(f"{where}: image id {image_id!r} comes twice; give each sample its own id")
            seen.add(image_id)
            entries.append(Entry(image_id, where, (name,), _sample_captions(where, sample.texts), image))
    return Entries(entries, [])


def _sample_id(texts: dict[str, bytes], number: int) -> ID:
    """The `image_id` in a sample's .json, as data convert writes it, or else its number."""
    for ending, data in texts.items():
        if ending.endswith("json"):
            with contextlib.suppress(ValueError, RecursionError):  # an error only if the captions are in it
                found = json.loads(data)
                image_id = found.get("image_id") if isinstance(found, dict) else None
                if isinstance(image_id, IDS) and not isinstance(image_id, bool):
                    return image_id
    return number


def _sample_captions(where: str, texts: dict[str, bytes]) -> tuple[str, ...]:
    lines = [line for ending, data in texts.items() if ending.endswith("txt") for line in _lines(data)]
    if lines:
        return tuple(lines)
    for ending, data in texts.items():
        if ending.endswith("json"):
            try:
                found = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: its .{ending} is broken JSON: {str(error).splitlines()[0]}") from None
            key = first_key(CAPTION_KEYS, found) if isinstance(found, dict) else None
            if key is not None:
                return captions_in_cell(f"{where}: {key!r}", found[key])
    return ()
