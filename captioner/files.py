"""Reading files with one-line errors, and writing files and folders whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from captioner.errors import UserError

ID = int | str  # of an image
IDS = (int, str)
MAX_DEPTH = 20  # of nested YAML lists and mappings


def escapes_folder(name: str) -> bool:
    """Whether a file name, relative to a folder, points outside of it."""
    drive, rest = os.path.splitdrive(os.path.normpath(name))
    return bool(drive) or rest.startswith(os.sep) or rest.split(os.sep, 1)[0] == os.pardir


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read; OSError if it is a folder, a pipe or a device. Unlike ``open``, never wait for a pipe."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "a folder", path)
    raise OSError(errno.EINVAL, "a pipe or a device", path)


def require_fields(path: Path, what: str, entry: Any, fields: dict[str, Any]) -> None:
    """Raise UserError unless the entry is an object with these fields of these types; a bool is never one of them."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: expected an object with {', '.join(fields)}, found {json_type(entry)}")
    for key, types in fields.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = "a whole number or a string" if types == IDS else "a string"
            found = f"is {json_type(value)}" if key in entry else "is missing"
            number = entry.get("id", entry.get("image_id"))
            named = f" (id {number!r})" if isinstance(number, IDS) and key != "id" else ""
            hint = "; name a captions file, not instances or keypoints" if key == "caption" else ""
            raise UserError(f"{path}: {what}{named}: {key!r} {found}, expected {wanted}{hint}")


def json_type(value: Any) -> str:
    """A JSON value as messages name it: an object, null, the number 3."""
    if value != value:  # a table writes it for an empty cell
        return "NaN"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")


_encoding: ContextVar[str] = ContextVar("encoding", default="")


@contextlib.contextmanager
def text_encoding(name: str) -> Iterator[None]:
    """Decode texts inside by this encoding of Python's, such as cp1252, unless they begin with a byte-order mark."""
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise UserError(
            f"--encoding (or --data.encoding) is {name!r}: unknown; try cp1252, latin-1 or gb18030"
        ) from None
    token = _encoding.set(name or _encoding.get())
    try:
        yield
    finally:
        _encoding.reset(token)


def decode_text(data: bytes, where: object, what: str = "text") -> str:
    """Text in UTF-8, in UTF-16 with a byte-order mark, or in the encoding of :func:`text_encoding`.

    Line breaks become \\n. UserError with the byte, if it is in none of these.
    """
    encoding = _encoding.get() or "utf-8-sig"
    if data.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        advice = "save it as UTF-8, or name its encoding by --encoding or --data.encoding"
        raise UserError(f"{where}: not {what}: byte {error.start} is not {name} text; {advice}") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file, decoded by :func:`decode_text`."""
    return parse_json(path, read_text(path))


def read_text(path: Path, what: str = "JSON") -> str:
    """Read a file as :func:`decode_text` does; an empty one is an error. `what` is the expected format."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name another file") from error
    text = decode_text(data, path, what)
    if not text.strip():
        raise UserError(f"{path}: is empty; write or download it again")
    return text


def parse_json(path: Path, text: str, line: int = 1) -> Any:
    """Parse JSON that begins in `line` of the file."""
    try:
        return json.loads(text, object_pairs_hook=no_contradiction)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno + line - 1} column {error.colno}"
        raise UserError(f"{path}: broken JSON at {where}: {error.msg}; the file may be cut short") from error
    except (ValueError, RecursionError) as error:  # as of :func:`no_contradiction`, or too deep nesting
        raise UserError(f"{path}: invalid JSON: {str(error).splitlines()[0]}") from error


def no_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON's pairs, for `object_pairs_hook`; ValueError if a key comes twice with different values."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        if found[key] != value:
            raise ValueError(f"{key!r} comes twice, as {value!r:.60} and as {found[key]!r:.60}; keep one")
    return found


def check_yaml(text: str) -> dict[str, int]:
    """The line of each key of YAML: train.lr for lr below train, as for a key of that name.

    yaml.YAMLError, with the line, if it is no YAML, or has what a parser takes in silence or at any cost: a key
    that occurs twice, of which it takes the last; an alias, which can expand to far more than its size; a tag, which
    can name any type; lists and mappings nested more than MAX_DEPTH deep.
    """
    import yaml  # not needed by captioner.deploy.onnx_runner, which imports this module

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines: dict[str, int] = {}
    try:
        _check_events(yaml.parse(text, loader))
        for key, line in _yaml_keys(yaml.compose(text, loader)):
            if key in lines:
                raise yaml.YAMLError(f"line {line}: {key} occurs twice, first in line {lines[key]}: leave one out")
            lines[key] = line
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise yaml.YAMLError(f"line {line}: a control character: remove it") from None
    except yaml.MarkedYAMLError as error:
        raise yaml.YAMLError(_explain_yaml(error, text)) from None
    return lines


def _check_events(events: Iterator[Any]) -> None:
    import yaml

    depth = documents = 0
    for event in events:
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"{where}: *{event.anchor}: write the value itself")
        if tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.YAMLError(f"{where}: {tag}: write the value without a tag")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise yaml.YAMLError(f"{where}: another document begins: write one")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"{where}: nested more than {MAX_DEPTH} deep")


def _yaml_keys(node: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Each key of the nested mappings and its line."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {line}: a list or mapping as a name: write NAME: VALUE")
            if key.tag.endswith(":merge"):
                raise yaml.YAMLError(f"line {line}: <<: write the values themselves")
            name = f"{path}{key.value}"
            yield name, line
            yield from _yaml_keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            yield from _yaml_keys(each, f"{path}{number}.")


def _explain_yaml(error: Any, text: str) -> str:
    """A yaml.MarkedYAMLError as a line: where, what, and what to do."""
    mark = error.context_mark if "end of stream" in error.problem else error.problem_mark
    character = [*text.split("\n"), ""][mark.line][mark.column : mark.column + 1]
    known = {
        "cannot start any token": f"{character} begins no value: quote it",
        "expected key": "expected NAME: VALUE, indented as the lines above",
        "expected '-'": "expected - VALUE, indented as the lines above",
        "expected ','": "a comma or a closing bracket is missing",
        "expected node content": "a value or a closing bracket is missing",
        "nesting depth": f"nested more than {MAX_DEPTH} deep",
        "end of stream": "a quotation mark is opened and not closed",
        "mapping values": "a second colon: quote the value, or mend the indentation",
    }
    what = next((words for part, words in known.items() if part in error.problem), f"not YAML ({error.problem})")
    what = "a tab: indent by spaces" if character == "\t" else what
    return f"line {mark.line + 1}: {what}"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, trial: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends without an error; a link stays a link.

    A trial replaces nothing.
    """
    final = Path(os.path.realpath(path))
    part = final.parent / f".{final.stem}.{os.getpid()}.part{final.suffix}"  # some writers need the suffix
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if os.path.exists(final) and not os.path.isfile(final):
            raise OSError(errno.EINVAL, "it is a folder" if os.path.isdir(final) else "it is a pipe or a device")
        yield part
        if not trial:
            publish(part, final)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _unwritable(place: object, error: OSError) -> UserError:
    advice = "name another place, free disk space or fix the permissions"
    return UserError(f"{place}: cannot be written: {error.strerror or error}; {advice}")


def publish(part: Path, final: Path, flush: bool = True) -> None:
    """Give a finished file its final name; first `flush` it to the disk, so that it survives a power failure."""
    if flush:
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
    os.replace(part, final)


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` (--output), renamed to it when the block ends without an error.

    `out` must be new or empty. The temporary folder of a crashed run is removed.
    """
    from filelock import FileLock, Timeout

    typed, out = out, Path(os.path.realpath(out))
    part = out.parent / f".{out.name}.part"
    lock = FileLock(f"{part}.lock", timeout=0)
    try:
        if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
            raise UserError(f"--output {typed} exists already: name another folder or delete that one first")
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            try:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                yield part
                if os.path.exists(out):
                    out.rmdir()  # empty
                part.rename(out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(lock.lock_file)
    except Timeout:
        raise UserError(f"another run is writing --output {typed}: wait for it or name another folder") from None
    except OSError as error:
        raise _unwritable(f"--output {typed}", error) from error


def check_writable(path: Path) -> None:
    """Check, before hours of work, that :func:`atomic_write` can write a file; only its folder is created."""
    with atomic_write(path, trial=True) as part:
        part.touch()


def check_creatable(path: str, place: str) -> None:
    """Check that a file or folder could be created or replaced, without creating anything; `place` is for messages."""
    final = Path(os.path.realpath(path))
    folder = final if final.is_dir() else next(above for above in final.parents if above.exists())
    if not folder.is_dir():
        raise _unwritable(place, NotADirectoryError(errno.ENOTDIR, f"{folder} is a file"))
    if not os.access(folder, os.W_OK):
        raise _unwritable(place, PermissionError(errno.EACCES, f"no permission to write to {folder}"))


def check_replaceable(path: str, place: str, inputs: Iterable[str]) -> None:
    """Check that writing a file replaces none of the `inputs`, and nothing binary, drawn or HTML of other programs.

    Text is replaced: whose it is cannot be seen.
    """
    if not os.path.isfile(path):
        return
    if any(os.path.samefile(path, each) for each in inputs):
        raise UserError(f"{place} is read by the same command: name another file")
    with open_regular(path) as file:
        start = file.read(1 << 16)
        file.seek(max(0, os.path.getsize(path) - len(start)))
        end = file.read(1 << 16)
    is_text = b"\0" not in start and not start.lstrip()[:9].lower().startswith(
        (b"<!doctype", b"<html", b"<svg", b"<?xml", b"%pdf")
    )
    if not is_text and not any(mark in part for mark in (b"captioner", b"Matplotlib") for part in (start, end)):
        raise UserError(f"{place} exists and is of another program: name another file or delete that one first")


def write_text(path: str | os.PathLike, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 file whole or not at all; see :func:`atomic_write`. `errors` is that of :func:`open`."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write a JSON file whole or not at all; see :func:`atomic_write`."""
    write_text(path, json.dumps(data, indent=1) + "\n")
