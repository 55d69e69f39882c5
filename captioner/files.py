"""Files and folders, read with errors of one line, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from captioner.errors import UserError

ID = int | str  # what names an image
IDS = (int, str)


def leaves(name: str) -> bool:
    """Whether a file name points outside of the folder it should be relative to."""
    drive, rest = os.path.splitdrive(os.path.normpath(name))
    return bool(drive) or rest.startswith(os.sep) or rest.split(os.sep, 1)[0] == os.pardir


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read. What is none, such as a pipe that never ends, is not waited for.

    Raises:
        OSError: it is not there, is no plain file, or cannot be read.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")
    os.close(number)
    directory = stat.S_ISDIR(mode)
    raise OSError(errno.EISDIR if directory else errno.EINVAL, "a folder" if directory else "a pipe or a device", path)


def check(path: Path, what: str, entry: Any, fields: dict[str, Any]) -> None:
    """Raise UserError unless the entry is an object whose fields have the right types (true and false are no ids)."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: expected an object with {', '.join(fields)}, found {kind(entry)}")
    for key, types in fields.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = "a whole number or a string" if types == IDS else "a string"
            found = f"is {kind(value)}" if key in entry else "is missing"
            number = entry.get("id", entry.get("image_id"))
            named = f" (id {number!r})" if isinstance(number, IDS) and key != "id" else ""
            hint = "; name a captions file, not instances or keypoints" if key == "caption" else ""
            raise UserError(f"{path}: {what}{named}: {key!r} {found}, expected {wanted}{hint}")


def kind(value: Any) -> str:
    """JSON's word for a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r}")


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8, with or without a byte-order mark).

    Raises:
        UserError: one line with the path, and the line and column where the JSON breaks.
    """
    return parse_json(path, read_text(path))


def read_text(path: Path, what: str = "JSON") -> str:
    """The text (UTF-8, with or without a byte-order mark) of a file that is not empty; `what` it should have been."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {what}: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; write or fetch it again")
    return text


def parse_json(path: Path, text: str, line: int = 1, pairs: Any = None) -> Any:
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


@contextlib.contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """A place beside a file to write to, which takes its name when all went well; a link stays a link.

    Raises:
        UserError: the file cannot be written there, or is a folder, a pipe or a device, which would be replaced.
    """
    final = Path(os.path.realpath(path))
    part = final.parent / f".{final.stem}.{os.getpid()}.part{final.suffix}"  # some writers go by the ending
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if os.path.exists(final) and not os.path.isfile(final):
            raise OSError(errno.EINVAL, "it is a folder" if os.path.isdir(final) else "it is a pipe or a device")
        yield part
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, final)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written: {reason}; name another place or make room") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all went well; what a crash has left there is removed.

    Raises:
        UserError: there is something in `out`, another run is writing it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    typed, out = out, Path(os.path.realpath(out))
    part = out.parent / f".{out.name}.part"
    lock = FileLock(f"{part}.lock", timeout=0)
    try:
        if os.path.lexists(out) and not (os.path.isdir(out) and not os.listdir(out)):
            raise UserError(f"--output {typed} is there already: name another folder or delete that one first")
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
        raise UserError(f"--output {typed}: cannot be written: {error.strerror or error}; make room there") from error


def check_writable(path: Path) -> None:
    """Find out before hours of work whether a file can be written there; nothing but its folder is made.

    Raises:
        UserError: it cannot, as :func:`aside` would say later.
    """
    with contextlib.suppress(_Tried), aside(path) as part:
        part.touch()
        raise _Tried


class _Tried(Exception):
    """It could be written, and need not be."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; see :func:`aside`."""
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")
