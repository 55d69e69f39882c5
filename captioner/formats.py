"""Annotation files to examples, in pure functions."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import UserError

ID = int | str  # what names an image
_ID = (int, str)


@dataclass(frozen=True, slots=True)
class Example:
    """One image and what people wrote about it.

    image_id is the file's own name for the image: an int in COCO, and a str is passed through as it stands.
    captions: stripped, never blank, in the order of the file; as many as there are.
    """

    image_id: int
    path: Path
    captions: tuple[str, ...]


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
    with _undisturbed():
        listed, captions = _coco(annotations, read_json(annotations))
        return _examples(listed, captions, annotations, images, skip_bad, option, albums)


def _examples(
    listed: list[dict[str, Any]],
    captions: dict[ID, list[str]],
    annotations: Path,
    images: Path,
    skip_bad: bool,
    option: str,
    albums: bool,
) -> tuple[list[Example], list[str]]:
    """What read_coco returns."""
    if not os.path.isdir(images):
        raise UserError(f"{images}: no such folder of images; check the path")

    @functools.cache
    def names(folder: str) -> frozenset[str]:
        """The files of one folder, listed once: far cheaper than asking the disk for every image."""
        try:
            with os.scandir(os.path.join(images, folder)) as entries:
                return frozenset(entry.name for entry in entries if albums or entry.is_file())
        except (OSError, ValueError):  # no such folder, or a name that none can have
            return frozenset()

    examples: list[Example] = []
    problems: list[tuple[str, str]] = []  # (kind, line)
    for image in listed:
        image_id, file_name = image["id"], image["file_name"]
        where = f"{annotations}: image id {image_id!r}"
        relative = os.path.normpath(file_name)
        folder, name = os.path.split(relative)
        every = captions.pop(image_id, [])
        written = tuple(caption for caption in every if caption)
        if leaves(relative):
            problems.append(("file name outside the folder", f"{where}: file name {file_name!r} leaves {images}"))
        elif name not in names(folder):
            problems.append(("missing image file", f"{where}: no file {file_name!r} in {images}"))
        elif not written:
            problems.append(("image without a caption", f"{where} ({file_name!r}) has no caption"))
        else:
            examples.append(Example(image_id, Path(images, relative), written))
            if len(written) < len(every):
                problems.append(("image with a blank caption", f"{where} ({file_name!r}) has a blank caption"))
    for image_id in captions:  # what no listed image has taken
        problems.append(("unknown image id", f"{annotations}: captions for image id {image_id!r}, not in its 'images'"))

    if problems and not skip_bad:
        more = Counter(kind for kind, _ in problems[1:])
        kinds = ", ".join(f"{count} × {kind}" for kind, count in more.items())
        also = f" (and {len(problems) - 1} more: {kinds})" if more else ""
        raise UserError(f"{problems[0][1]}{also}; mend it, or use {option} true to skip them")
    if not examples:
        why = f"all are bad, the first: {problems[0][1]}" if problems else "it lists none"
        raise UserError(f"{annotations}: no image to use: {why}")
    return examples, [line for _, line in problems]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No search for garbage meanwhile: it would go through millions of new objects again and again, in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def leaves(relative: str) -> bool:
    """Whether a normalised file name points outside the folder it should be relative to."""
    drive, rest = os.path.splitdrive(relative)
    return bool(drive) or rest.startswith(os.sep) or rest.split(os.sep, 1)[0] == os.pardir


# What programs call the image, the caption and the list. An "id" may be no more than the number of the row: it is last.
FILE = ("file_name", "filename", "image_path", "image", "file", "path")
IMAGE = ("image_id", "cocoid", "img_id", "imgid", *FILE, "id")
CAPTION = ("caption", "captions", "text", "sentence", "prediction", "pred", "generated", "output")
REFERENCES = [("references", "captions"), CAPTION]  # the first group of which an entry has one
WRAPPED = ("results", "predictions", "annotations")


def read_references(path: Path) -> dict[ID, list[str]]:
    """The captions of :func:`read_named_references`."""
    return read_named_references(path)[0]


def read_named_references(path: Path) -> tuple[dict[ID, list[str]], dict[ID, str]]:
    """Captions by image id, and file names by image id where the file gives them; no image is looked at.

    Reads a COCO captions file (in the order of `images`), {"id": ["caption", …]}, or a list of objects with one or more
    captions each (`captions`, `references`, `caption` …; an image may come several times), as JSON or JSON Lines.
    Images without a caption, blank captions and captions of images that are not listed are left out: they cannot take
    part in a score.

    Raises:
        UserError: as read_coco does for the file itself, not such a file, or nothing is left.
    """
    data = _read_captions(path)
    found: dict[ID, list[str]] = {}
    names: dict[ID, str] = {}
    if isinstance(data, dict) and "images" in data:
        listed, captions = _coco(path, data, fields={"id": _ID})
        found = {image["id"]: captions.get(image["id"], []) for image in listed}
        names = {image["id"]: image["file_name"] for image in listed if isinstance(image.get("file_name"), str)}
    else:
        what = "captions: expected the lists 'images' and 'annotations' of COCO, {\"id\": [\"caption\", …]}, a list"
        for image, texts, name in _rows(path, data, "reference", what, REFERENCES):
            found.setdefault(image, []).extend(text.strip() for text in texts)
            if name is not None and name != image:
                names[image] = name
    found = {image: [text for text in texts if text] for image, texts in found.items()}
    found = {image: texts for image, texts in found.items() if texts}
    if not found:
        raise UserError(f"{path}: no image in it has a caption; name a captions file")
    return found, {image: name for image, name in names.items() if image in found}


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
        if results.setdefault(image, texts[0]) != texts[0]:
            raise UserError(
                f"{path}: image {image!r} comes twice, as {results[image]!r} and as {texts[0]!r}; keep one caption"
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
            yield image, _texts(f"{path}: image {image!r}", value), None
        return
    if not isinstance(data, list) or not data:
        found = "an empty list" if data == [] else "an empty object" if data == {} else _kind(data)
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
        _check(path, f"{one} {position}", entry, {image_key: _ID})
        if present[0] not in entry:
            _check(path, f"{one} {position}", entry, {present[0]: str})
        name = entry.get(file_key)
        texts = _texts(f"{path}: {one} {position}: {present[0]!r}", entry[present[0]])
        yield entry[image_key], texts, name if isinstance(name, str) else None


def _texts(where: str, value: Any) -> list[str]:
    """One caption or a list of them, each a string or an object with a `caption`."""
    values = value if isinstance(value, list) else [value]
    texts: list[Any] = [one.get("caption") if isinstance(one, dict) else one for one in values]
    if not texts:
        raise UserError(f"{where} is an empty list, expected a caption")
    for text in texts:
        if not isinstance(text, str):
            of = "has" if isinstance(value, list) else "is"
            raise UserError(f"{where} {of} {_kind(text)}, expected a string or a list of strings")
    return texts


def _coco(
    path: Path, data: Any, fields: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], dict[ID, list[str]]]:
    """The checked `images` of a captions file, and stripped captions (maybe blank) by image id, in file order.

    fields: what every image must have; by default an id and a file_name.
    """
    from pycocotools.coco import COCO

    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            found = _kind(data) if not isinstance(data, dict) else f"no list {key!r}"
            raise UserError(f"{path}: not COCO captions: expected the lists 'images' and 'annotations', found {found}")

    for position, image in enumerate(data["images"]):
        _check(path, f"image {position}", image, fields or {"id": _ID, "file_name": str})
    twice = _twice(image["id"] for image in data["images"])
    if twice is not None:
        raise UserError(f"{path}: image id {twice!r} comes twice, so its captions are ambiguous; remove one")

    annotations = data["annotations"]
    for position, entry in enumerate(annotations):
        # There are five times as many as images; this first look is for speed.
        if isinstance(entry, dict) and type(entry.get("image_id")) in _ID and type(entry.get("caption")) is str:
            number = entry.get("id")
            if number is None or type(number) in _ID:
                continue
        _check(path, f"annotation {position}", entry, {"image_id": _ID, "caption": str, "id": _ID})
    numbers = [entry["id"] for entry in annotations if entry.get("id") is not None]
    twice = _twice(numbers)
    if twice is not None:
        raise UserError(f"{path}: annotation id {twice!r} comes twice; remove one or number it anew")
    if len(numbers) < len(annotations):
        annotations = [{**entry, "id": position} for position, entry in enumerate(annotations)]

    coco = COCO()
    coco.dataset = {"images": data["images"], "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    captions = {key: [entry["caption"].strip() for entry in group] for key, group in coco.imgToAnns.items()}
    return data["images"], captions


def _twice(ids: Iterable[ID]) -> ID | None:
    """The first id that comes a second time."""
    seen: set[ID] = set()
    return next((one for one in ids if one in seen or seen.add(one)), None)  # type: ignore[func-returns-value]


def _check(path: Path, what: str, entry: Any, fields: dict[str, Any]) -> None:
    """Raise UserError unless the entry is an object whose fields have the right types (true and false are no ids)."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: expected an object with {', '.join(fields)}, found {_kind(entry)}")
    for key, types in fields.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = "a whole number or a string" if types == _ID else "a string"
            found = f"is {_kind(value)}" if key in entry else "is missing"
            number = entry.get("id", entry.get("image_id"))
            named = f" (id {number!r})" if isinstance(number, _ID) and key != "id" else ""
            hint = "; name a captions file, not instances or keypoints" if key == "caption" else ""
            raise UserError(f"{path}: {what}{named}: {key!r} {found}, expected {wanted}{hint}")


def _kind(value: Any) -> str:
    """JSON's word for a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8, with or without a byte-order mark).

    Raises:
        UserError: one line with the path, and the line and column where the JSON breaks.
    """
    return _parse(path, _read_text(path))


def _read_captions(path: Path) -> Any:
    """The content of a JSON file without contradictory keys; of JSON Lines, the list of the values of its lines."""
    text = _read_text(path)
    try:
        return _parse(path, text, pairs=_no_contradiction)
    except UserError as error:
        broken: Any = error.__cause__
        more = isinstance(broken, json.JSONDecodeError) and broken.msg == "Extra data"
        if not (more and "\n" not in text[: broken.pos].strip()):  # the first value does not end with its line
            raise
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(path, line, number, _no_contradiction) for number, line in lines if line.strip()]


def _no_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, unless it gives two values for one key."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        if found[key] != value:
            raise ValueError(f"{key!r} comes twice, as {value!r} and as {found[key]!r}; keep one")
    return found


def _read_text(path: Path) -> str:
    """The text of a file that is not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; write or fetch it again")
    return text


def _parse(path: Path, text: str, line: int = 1, pairs: Any = None) -> Any:
    """The value of JSON that begins in `line` of the file; `pairs` is the hook that makes its objects."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno + line - 1} column {error.colno}"
        raise UserError(f"{path}: broken JSON at {where}: {error.msg}; the file may be cut short") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        raise UserError(f"{path}: not JSON that can be read: {str(error).splitlines()[0]}") from error


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all; see :func:`write_text`."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: aside in the same folder (made when missing), then renamed.

    Raises:
        UserError: the file cannot be written there.
    """
    final = Path(os.path.realpath(path))  # a link stays a link
    aside = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another place or make room") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
