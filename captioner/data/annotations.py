"""Annotations of any layout to examples, references and results, in pure functions."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.data.addresses import is_address
from captioner.data.formats import (
    Entry,
    Listed,
    Problem,
    folder_of,
    has_sentences,
    metadata_of,
    opened,
    read_flickr,
    read_karpathy,
    read_pairs,
    read_table,
    read_webdataset,
    texts_of,
)
from captioner.data.shards import Member, are_shards
from captioner.errors import UserError
from captioner.files import (
    ID,
    IDS,
    escapes_folder,
    json_type,
    parse_json,
    read_json,
    read_text,
    require_fields,
)

MOST = 10_000  # characters of a caption; tokens take a time that grows with the square of those
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No search for garbage meanwhile: it would go through millions of new objects again and again, in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Example:
    """One image and what people wrote about it.

    image_id: the file's own name for the image: an int in COCO, and a str is passed through as it stands; where the
        file has none, the number of the image in it, from 0.
    path: where the image is: a file, an album, or a file in a shard.
    captions: stripped, never blank, in the order of the file; as many as there are.
    name: path below the folder of the images; of an image in a shard, the shard and the file in it.
    """

    image_id: Any
    path: Path | Member
    captions: tuple[str, ...]
    name: str = field(default="", compare=False)


@undisturbed()
def read_coco(
    annotations: Path,
    images: Path,
    skip_bad: bool = False,
    option: str = "--data.skip_bad_images",
    albums: bool = False,
) -> tuple[list[Example], list[str]]:
    """Read a COCO captions file (https://cocodataset.org/#format-data, image captioning).

    Args:
        annotations: JSON with the lists `images` (id, file_name) and `annotations` (image_id, caption).
        images: the folder that every file_name is relative to.
        skip_bad: leave out an image that is missing, has no caption or lies outside the folder, a blank caption, and
            captions of an image that is not listed; without it the first of these is an error.
        option: what the user would type to get skip_bad, for the message.
        albums: a file_name may be that of a folder.

    Returns:
        The examples in the order of `images`, at least one; and what was left out, one line each.

    Raises:
        UserError: a problem as above, a file that is not COCO captions, or an id given twice (whatever skip_bad says).
    """
    found, _ = _entries(os.fspath(annotations), "coco", read_json(annotations), images, "", None, albums)
    return _look(annotations, images, found, skip_bad, option, albums)


@undisturbed()
def read(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    split: str = "train",
    *,
    columns: str | None = None,
    listed: str | os.PathLike | None = None,
    skip_bad: bool = False,
    option: str = "--data.skip_bad_images",
    albums: bool = False,
) -> tuple[list[Example], list[str]]:
    """Read captioned images in any layout of docs/data.md.

    Args:
        path: a file, a folder, or an address or pattern of shards.
        images: the folder that file names are relative to. A table's are relative to its own folder without it, and
            folders and shards have their images themselves.
        split: which images, where the layout names several splits; "train" of Karpathy's is train and restval.
        columns: "IMAGE,CAPTION", the columns of a table, where they have other names than the usual ones.
        listed: a file with an image's name in each line: only these are read.
        skip_bad, option, albums: as in :func:`read_coco`.

    Returns:
        The examples in the order of the file, at least one; and what was left out, one line each.

    Raises:
        UserError: as in :func:`read_coco`; an unknown layout, a split that is not there, or `images` are needed.
    """
    layout, data = opened(path)
    where = os.fspath(path)
    if layout in ("coco", "karpathy", "flickr") and images is None:
        needed = "--data.train_images, --data.val_images or --images"
        raise UserError(f"{where}: does not say where its images are; name their folder with {needed}")
    found, folder = _entries(where, layout, data, images, split, columns, albums)
    entries, problems = _only(found, listed)
    return _look(where, folder, (entries, problems), skip_bad, option, albums, layout == "webdataset")


def _entries(
    path: str, layout: str, data: Any, images: str | os.PathLike | None, split: str, columns: str | None, albums: bool
) -> tuple[Listed, Path]:
    """What a file says, and the folder that its names are relative to; no image is looked at.

    `data` is what :func:`captioner.data.formats.opened` found in it.
    """
    file = Path(path)
    if layout == "webdataset":
        here = path if is_address(path) or not file.is_dir() else folder_of(file, split)
        return read_webdataset(here, albums), file
    if layout in ("imagefolder", "pairs"):
        file = folder_of(file, split)
        folder = file if images is None else Path(images)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of images; check the path")
        if layout == "pairs":
            return read_pairs(file, folder), folder
        return read_table(metadata_of(file), split, columns), folder
    folder = file.parent if images is None else Path(images)
    if layout == "karpathy":
        return read_karpathy(file, data, split), folder
    if layout == "flickr":
        return read_flickr(file, split, columns), folder
    if layout == "table":
        return read_table(file, split, columns), folder
    listed, captions = _coco(file, data)
    entries = []
    for image in listed:
        where = f"{file}: image id {image['id']!r}"
        entries.append(Entry(image["id"], where, (image["file_name"],), tuple(captions.pop(image["id"], []))))
    unknown = [  # what no listed image has taken
        Problem("unknown image id", f"{file}: captions for image id {image_id!r}, not in its 'images'")
        for image_id in captions
    ]
    return (entries, unknown), folder


def _only(found: Listed, listed: str | os.PathLike | None) -> Listed:
    """The entries that a list names, by file name with or without its ending."""
    if listed is None:
        return found
    names = dict.fromkeys(line.strip() for line in read_text(Path(listed), "text").splitlines() if line.strip())
    unseen, kept = set(names), []
    for entry in found[0]:
        name = entry.names[0]
        mine = {name, posixpath.basename(name), posixpath.splitext(posixpath.basename(name))[0]} & names.keys()
        unseen -= mine
        if mine:
            kept.append(entry)
    problems = [line for line in found[1] if line.kind != "unknown image id"]  # of other images, as far as is known
    for name in names:
        if name in unseen:
            problems.append(Problem("listed image without an entry", f"{listed}: {name!r} is not in the captions"))
    return kept, problems


def _look(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    listed: Listed,
    skip_bad: bool,
    option: str,
    albums: bool,
    packed: bool = False,
) -> tuple[list[Example], list[str]]:
    """The examples whose images are there, `packed` in shards or else in the folder; see :func:`read_coco`."""
    if not packed and not os.path.isdir(images):
        raise UserError(f"{images}: no such folder of images; check the path")

    @functools.cache
    def names(folder: str) -> frozenset[str]:
        """The files of one folder, listed once: far cheaper than asking the disk for every image."""
        try:
            with os.scandir(os.path.join(images, folder)) as entries:
                return frozenset(entry.name for entry in entries if albums or entry.is_file())
        except (OSError, ValueError):  # no such folder, or a name that none can have
            return frozenset()

    def is_there(relative: str) -> bool:
        folder, name = os.path.split(relative)
        return not escapes_folder(relative) and name in names(folder)

    below = Path(images)
    examples: list[Example] = []
    problems: list[tuple[str, str]] = []  # (kind, line)
    for entry in listed[0]:
        where, file_name = entry.where, entry.names[0]
        paths = [os.path.normpath(name) for name in entry.names]
        found = next((path for path in paths if not packed and is_there(path)), None)
        relative = paths[0] if found is None else found
        written = tuple(filter(None, map(clean, entry.captions)))
        if packed and entry.image is None:
            problems.append(("missing image file", f"{where} has no image"))
        elif found is None and escapes_folder(relative):
            problems.append(("file name outside the folder", f"{where}: file name {file_name!r} leaves {images}"))
        elif found is None and not packed:
            problems.append(("missing image file", f"{where}: no file {file_name!r} in {images}"))
        elif not written:
            problems.append(("image without a caption", f"{where} ({file_name!r}) has no caption"))
        else:
            image = below / relative if entry.image is None else entry.image
            examples.append(Example(entry.image_id, image, written, relative))
            if len(written) < len(entry.captions):
                problems.append(("image with a blank caption", f"{where} ({file_name!r}) has a blank caption"))
    problems += listed[1]

    if problems and not skip_bad:
        more = Counter(kind for kind, _ in problems[1:])
        kinds = ", ".join(f"{count} × {kind}" for kind, count in more.items())
        also = f" (and {len(problems) - 1} more: {kinds})" if more else ""
        raise UserError(f"{problems[0][1]}{also}; mend it, or use {option} true to skip them")
    if not examples:
        why = f"all are bad, the first: {problems[0][1]}" if problems else "it lists none"
        raise UserError(f"{annotations}: no image to use: {why}")
    return examples, [line for _, line in problems]


def clean(caption: str) -> str:
    """A caption without what no file of UTF-8 can hold and no terminal should see, and not of more than MOST letters.

    Lone surrogates and control characters are spaces; line breaks and tabs stay.
    """
    caption = caption[:MOST]
    return caption if caption.isprintable() else CONTROLS.sub(" ", caption).strip()


# What programs call the image, the caption and the list. An "id" may be no more than the number of the row: it is last.
FILE = ("file_name", "filename", "image_path", "image", "file", "path")
IMAGE = ("image_id", "cocoid", "img_id", "imgid", *FILE, "id")
CAPTION = ("caption", "captions", "text", "sentence", "prediction", "pred", "generated", "output")
REFERENCES = [("references", "captions"), CAPTION]  # the first group of which an entry has one
WRAPPED = ("results", "predictions", "annotations")


def read_references(path: Path) -> dict[ID, list[str]]:
    """The captions of :func:`read_named_references`."""
    return read_named_references(path)[0]


def read_named_references(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    split: str = "val",
    *,
    columns: str | None = None,
    listed: str | os.PathLike | None = None,
) -> tuple[dict[ID, list[str]], dict[ID, str]]:
    """Captions by image id, and file names by image id where the file gives them; no image is looked at.

    Reads all that :func:`read` reads, with the same options. JSON, or JSON Lines, may also be a COCO captions file
    without file names, {"id": ["caption", …]}, or a list of objects with one or more captions each (`captions`,
    `references`, `caption` …; an image may come several times).
    Images without a caption, blank captions and captions of images that are not listed are left out: they cannot take
    part in a score.

    Raises:
        UserError: as read_coco does for the file itself, not such a file, or nothing is left.
    """
    data = _read_captions(Path(path)) if listed is None and _is_json(path) else None
    if data is None or has_sentences(data):
        layout, data = opened(path) if data is None else ("karpathy", data)
        entries, _ = _only(_entries(os.fspath(path), layout, data, images, split, columns, albums=True)[0], listed)
        found: dict[ID, list[str]] = {entry.image_id: list(entry.captions) for entry in entries}
        names: dict[ID, str] = {entry.image_id: entry.names[0] for entry in entries}
    else:
        found, names = _json_references(Path(path), data)
    found = {image: [text for text in map(clean, texts) if text] for image, texts in found.items()}
    found = {image: texts for image, texts in found.items() if texts}
    if not found:
        raise UserError(f"{path}: no image in it has a caption; name a captions file")
    return found, {image: name for image, name in names.items() if image in found}


def _is_json(path: str | os.PathLike) -> bool:
    """Whether a file is JSON or JSON Lines, by its name or else by how it begins."""
    text = os.fspath(path)
    if (
        is_address(text)
        or are_shards(text)
        or os.path.isdir(text)
        or text.lower().endswith((".csv", ".tsv", ".parquet"))
    ):
        return False
    return ".json" in Path(text).suffix.lower() or read_text(Path(text), "text").lstrip()[0] in "[{"


def _json_references(path: Path, data: Any) -> tuple[dict[ID, list[str]], dict[ID, str]]:
    """Captions and file names of COCO's layout or something like it."""
    found: dict[ID, list[str]] = {}
    names: dict[ID, str] = {}
    if isinstance(data, dict) and "images" in data:
        listed, captions = _coco(path, data, fields={"id": IDS})
        found = {image["id"]: captions.get(image["id"], []) for image in listed}
        names = {image["id"]: image["file_name"] for image in listed if isinstance(image.get("file_name"), str)}
    else:
        what = "captions: expected the lists 'images' and 'annotations' of COCO, {\"id\": [\"caption\", …]}, a list"
        for image, texts, name in _rows(path, data, "reference", what, REFERENCES):
            found.setdefault(image, []).extend(text.strip() for text in texts)
            if name is not None and name != image:
                names[image] = name
    return found, names


def read_results(path: Path) -> dict[ID, str]:
    """One caption for each image, by whatever the file calls the image; :func:`match` finds the image that is meant.

    Reads COCO results, [{"image_id", "caption"}], with these or the other usual names (IMAGE, CAPTION), bare, as JSON
    Lines (``captioner predict --format jsonl``) or wrapped in an object (WRAPPED), and {"id": "caption"}. Of a list of
    captions the first is taken. An image may come again with the same caption.

    Raises:
        UserError: not such a file, an empty one, or an image with two different captions.
    """
    what = 'COCO results: expected a list of {"image_id", "caption"}, {"id": "caption"}'
    results: dict[ID, str] = {}
    for image, texts, _ in _rows(path, _read_captions(path), "result", what, [CAPTION]):
        text = clean(texts[0])
        if results.setdefault(image, text) != text:
            raise UserError(
                f"{path}: image {image!r} comes twice, as {results[image]!r} and as {text!r}; keep one caption"
            )
    return results


def match(
    references: Mapping[Any, Any],
    results: Mapping[Any, str],
    names: Mapping[Any, str] | None = None,
    where: str = "results",
) -> tuple[dict[ID, str], list[ID], list[ID]]:
    """Find the image that each result is of.

    The name of a result is the id of an image (7 and "7" are the same), or its file name: the whole path, with any
    folders before it, or else the base name. File names are `names`; without one, the id is the file name.

    Args:
        references: whatever is known of each image, by id.
        results: captions by id or file name.
        names: file names by image id.
        where: what to call the results in an error.

    Returns:
        Captions by image id in the order of the references; the ids of the references without a caption; the names of
        the results that fit no image, each in its order.

    Raises:
        UserError: a result fits several images, results go by id and by file name, or two fit one image and differ.
    """
    names = names or {}
    ids = {str(image): image for image in references}
    if len(ids) < len(references):
        twice = next(image for image in references if ids[str(image)] != image)
        raise UserError(f"the annotations have image {twice} as a number and as a string; keep one")
    paths: dict[str, list[ID]] = {}
    bases: dict[str, list[ID]] = {}
    for image in references:
        name = names.get(image, image)
        if isinstance(name, str):
            paths.setdefault(_slashes(name), []).append(image)
            bases.setdefault(posixpath.basename(_slashes(name)), []).append(image)

    def by_name(result: str) -> list[ID]:
        parts = _slashes(result).split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((paths[tail] for tail in tails if tail in paths), bases.get(parts[-1], []))

    found: dict[ID, str] = {}
    extra: list[ID] = []
    used: dict[str, ID] = {}  # "id" or "file name" → the first result that goes by it
    for result, caption in results.items():
        if str(result) in ids:
            fits, how = [ids[str(result)]], "id"
        else:
            fits, how = by_name(result) if isinstance(result, str) else [], "file name"
        if len(fits) > 1:
            some = ", ".join(map(repr, fits[:3]))
            raise UserError(f"{where}: {result!r} is the name of {len(fits)} images (ids {some} …); use their ids")
        if not fits:
            extra.append(result)
            continue
        if fits[0] in names:
            used.setdefault(how, result)
        if found.setdefault(fits[0], caption) != caption:
            both = f"as {found[fits[0]]!r} and as {caption!r}"
            raise UserError(f"{where}: image {fits[0]!r} comes twice, {both} ({result!r}); keep one caption")
    if len(used) > 1:
        some = " and ".join(f"some by {how} (e.g. {result!r})" for how, result in used.items())
        raise UserError(f"{where}: names images in two ways, {some}; use one of them throughout")
    pairs = {image: found[image] for image in references if image in found}
    return pairs, [image for image in references if image not in found], extra


def _slashes(name: str) -> str:
    """A path in one spelling."""
    return posixpath.normpath(name.replace("\\", "/"))


def _rows(
    path: Path, data: Any, one: str, what: str, captions: Sequence[Sequence[str]]
) -> Iterator[tuple[ID, list[str], str | None]]:
    """Image, captions (one or more) and file name of each entry; `one` and `what` name an entry and the file in errors.

    The first entry says which fields are meant.
    """
    if isinstance(data, dict):
        wrapped = [key for key in WRAPPED if isinstance(data.get(key), list | dict)]
        if len(wrapped) > 1:
            raise UserError(f"{path}: has both {wrapped[0]!r} and {wrapped[1]!r}; keep one")
        if wrapped:
            data = data[wrapped[0]]
        elif any(key in data for key in IMAGE) and any(key in data for group in captions for key in group):
            data = [data]  # one line of JSON Lines
    if isinstance(data, dict) and data:
        for image, value in data.items():
            yield image, texts_of(f"{path}: image {image!r}", value), None
        return
    if not isinstance(data, list) or not data:
        found = "an empty list" if data == [] else "an empty object" if data == {} else json_type(data)
        raise UserError(f"{path}: not {what} or JSON Lines, found {found}")

    first = data[0] if isinstance(data[0], dict) else {}
    image_key = next((key for key in IMAGE if key in first), "image_id")
    file_key = next((key for key in FILE if key in first), None)
    present = next(
        (keys for keys in ([key for key in group if key in first] for group in captions) if keys), ["caption"]
    )
    if len(present) > 1:
        raise UserError(f"{path}: {one} 0 has both {present[0]!r} and {present[1]!r}; keep the one that is meant")
    for position, entry in enumerate(data):
        require_fields(path, f"{one} {position}", entry, {image_key: IDS})
        if present[0] not in entry:
            require_fields(path, f"{one} {position}", entry, {present[0]: str})
        name = entry.get(file_key)
        texts = texts_of(f"{path}: {one} {position}: {present[0]!r}", entry[present[0]])
        yield entry[image_key], texts, name if isinstance(name, str) else None


def _coco(
    path: Path, data: Any, fields: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], dict[ID, list[str]]]:
    """The checked `images` of a captions file, and stripped captions (maybe blank) by image id, in file order.

    fields: what every image must have; by default an id and a file_name.
    """
    from pycocotools.coco import COCO

    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            found = json_type(data) if not isinstance(data, dict) else f"no list {key!r}"
            raise UserError(f"{path}: not COCO captions: expected the lists 'images' and 'annotations', found {found}")

    for position, image in enumerate(data["images"]):
        require_fields(path, f"image {position}", image, fields or {"id": IDS, "file_name": str})
    annotations = data["annotations"]
    for position, entry in enumerate(annotations):
        # There are five times as many as images; this first look is for speed.
        if isinstance(entry, dict) and type(entry.get("image_id")) in IDS and type(entry.get("caption")) is str:
            number = entry.get("id")
            if number is None or type(number) in IDS:
                continue
        require_fields(path, f"annotation {position}", entry, {"image_id": IDS, "caption": str, "id": IDS})
    numbers = [entry["id"] for entry in annotations if entry.get("id") is not None]
    if len(numbers) < len(annotations):
        annotations = [{**entry, "id": position} for position, entry in enumerate(annotations)]

    coco = COCO()
    coco.dataset = {"images": data["images"], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    if len(coco.imgs) < len(data["images"]):
        twice = _twice(image["id"] for image in data["images"])
        raise UserError(f"{path}: image id {twice!r} comes twice, so its captions are ambiguous; remove one")
    if len(coco.anns) < len(annotations) or len(numbers) < len(annotations):
        twice = _twice(numbers)
        if twice is not None:
            raise UserError(f"{path}: annotation id {twice!r} comes twice; remove one or number it anew")
    captions = {key: [entry["caption"].strip() for entry in group] for key, group in coco.imgToAnns.items()}
    return data["images"], captions


def _twice(ids: Iterable[ID]) -> ID | None:
    """The first id that comes a second time."""
    seen: set[ID] = set()
    return next((one for one in ids if one in seen or seen.add(one)), None)  # type: ignore[func-returns-value]


def _read_captions(path: Path) -> Any:
    """The content of a JSON file without contradictory keys; of JSON Lines, the list of the values of its lines."""
    text = read_text(path)
    try:
        return parse_json(path, text, pairs=_no_contradiction)
    except UserError as error:
        broken: Any = error.__cause__
        more = isinstance(broken, json.JSONDecodeError) and broken.msg == "Extra data"
        if not (more and "\n" not in text[: broken.pos].strip()):  # the first value does not end with its line
            raise
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(path, line, number, _no_contradiction) for number, line in lines if line.strip()]


def _no_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, unless it gives two values for one key."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        if found[key] != value:
            raise ValueError(f"{key!r} comes twice, as {value!r} and as {found[key]!r}; keep one")
    return found
