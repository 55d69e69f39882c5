"""One file over HTTP: continued after a cut, begun again where it has changed, whole under its name or not there.

urllib follows redirects, goes through the proxies of the environment and has a timeout. What is added here, going on in
the middle of a file, pooch, requests and fsspec do not do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from captioner import __version__
from captioner.errors import UserError
from captioner.files import write_json

TIMEOUT = 60.0  # seconds without a byte
RETRIES = 8  # in a row without progress: with the pauses, about three minutes
PAUSE = 1.0  # seconds before the first retry; doubles each time
LONGEST_PAUSE = 60.0
CHUNK = 1 << 20  # bytes
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that pass


class _Cut(Exception):
    """The answer ended early, or never came: worth another try. `after`: seconds the server asks to wait."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _Refused(Exception):
    """An answer that another try will not change."""


@dataclass(frozen=True)
class _Version:
    """Which file a .part is the beginning of. validator: its strong ETag or its date; without one, none goes on."""

    url: str
    validator: str | None
    size: int | None


def download(
    urls: Sequence[str],
    path: Path,
    size: int | None = None,
    sha256: str | None = None,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> None:
    """Fetch a file to `path`, by way of `path`.part, which a later call goes on with.

    Args:
        urls: addresses of the same file; the next is tried where one refuses or gives up.
        path: where it goes, in a folder that exists.
        size: bytes it has, where known.
        sha256: hex digest it has, where known.
        timeout: seconds without a byte after which a connection counts as cut.
        retries: in a row without progress.

    Raises:
        UserError: no address gave the file, it is not the one expected (the part is then removed), or the disk is full.
    """
    part, note = _beside(path)
    reasons = []
    with tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1000, disable=None) as bar:
        for url in urls:
            try:
                _persist(url, part, note, size, timeout, retries, bar)
                break
            except _Refused as refusal:
                reasons.append(f"{url}: {refusal}")
            except OSError as error:
                raise UserError(
                    f"{part}: cannot be written: {error.strerror}; make room or choose another place"
                ) from None
        else:
            kept = f"; {part.stat().st_size:,} bytes are kept for the next try" if part.exists() else ""
            raise UserError(f"{path.name} cannot be fetched: {'; '.join(reasons)}{kept}")
    try:
        verify(part, size, sha256)
    except UserError as error:
        note.unlink(missing_ok=True)
        part.unlink()
        raise UserError(f"{error}; it was removed: fetch it again") from None
    os.replace(part, path)
    note.unlink(missing_ok=True)


def verify(path: Path, size: int | None, sha256: str | None) -> None:
    """See that a file is the one expected.

    Raises:
        UserError: it has another size in bytes, or another SHA-256.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path}: has {found:,} bytes and not {size:,}: another file, or not whole")
    if sha256 is not None:
        digest = hashlib.sha256()
        with (
            open(path, "rb") as file,
            tqdm(total=found, desc=f"checking {path.name}", unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != sha256:
            raise UserError(f"{path}: its SHA-256 is {digest.hexdigest()} and not {sha256}: damaged, or another file")


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """See that a disk has room for `needed` more bytes.

    Raises:
        UserError: it has not; `what` says what they are for.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} needs {tqdm.format_sizeof(needed, 'B')} and the disk has "
            f"{tqdm.format_sizeof(free, 'B')} free; make room or choose another place"
        )


def partial_size(path: Path) -> int:
    """Bytes of `path`.part, 0 without one."""
    part, _ = _beside(path)
    return part.stat().st_size if part.exists() else 0


def _beside(path: Path) -> tuple[Path, Path]:
    """The part of a file, and the note of what it is a part of."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


def _persist(url: str, part: Path, note: Path, size: int | None, timeout: float, retries: int, bar: Any) -> None:
    """Try until the part is whole, or `retries` times in a row it did not grow beyond what it had before."""
    furthest = part.stat().st_size if part.exists() else 0
    failures = 0
    while True:
        try:
            _attempt(url, part, note, size, timeout, bar)
            return
        except _Cut as cut:
            reached = part.stat().st_size if part.exists() else 0
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures > retries:
                raise _Refused(f"{cut} (tried {failures} times without progress)") from None
            wait = max(cut.after, PAUSE * 2**failures * random.uniform(0.5, 1))
            wait = min(wait, LONGEST_PAUSE)
            bar.write(f"{url}: {cut}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)


def _attempt(url: str, part: Path, note: Path, size: int | None, timeout: float, bar: Any) -> None:
    """One request; returns when the part is whole."""
    version = _read(note)
    offset = part.stat().st_size if part.exists() else 0
    if not (version and version.url == url and version.validator and offset <= (version.size or offset)):
        version, offset = None, 0
    if version and offset == version.size:
        return
    headers = {"User-Agent": f"captioner/{__version__}", "Accept-Encoding": "identity"}
    if version and version.validator and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version.validator}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        with error:
            if error.code == 416 and offset:
                note.unlink(missing_ok=True)
                raise _Cut("the file has become shorter; beginning again") from None
            if error.code in AGAIN:
                seconds = error.headers.get("Retry-After", "")
                raise _Cut(f"HTTP {error.code} {error.reason}", float(seconds) if seconds.isdecimal() else 0) from None
            raise _Refused(f"HTTP {error.code} {' '.join(str(error.reason).split())}") from None
    except (OSError, HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            raise _Refused(_why(error, timeout)) from None
        raise _Cut(_why(error, timeout)) from None
    except ValueError as error:  # a redirect to what is no address
        raise _Refused(str(error)) from None
    with response:
        found = response.headers
        if found.get_content_type() == "text/html":  # the part, if there is one, stays
            raise _Refused("answers with a web page and not the file; is there a login page between?")
        if response.status == 206 and version and offset:
            if not _continues(found, version, offset):
                note.unlink(missing_ok=True)
                raise _Cut("answered with other bytes than those asked for; beginning again")
            if version.size is None and response.length is not None:
                version = replace(version, size=offset + response.length)
        elif response.status == 200:
            offset, version = 0, _Version(url, _validator(found), response.length)
            if size is not None and version.size not in (None, size):
                raise _Refused(f"has {version.size:,} bytes and not {size:,}: another file")
        else:
            raise _Refused(f"HTTP {response.status} was not expected")
        check_free_space(part.parent, (version.size or offset) - offset, f"the rest of {part.stem}")
        bar.reset(version.size)
        bar.n = bar.initial = offset
        with open(part, "ab" if offset else "wb") as file:
            if not offset:
                write_json(note, asdict(version))
            while chunk := _read1(response, timeout):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            reached = file.tell()
    if version.size is not None and reached < version.size:
        raise _Cut(f"cut after {reached:,} of {version.size:,} bytes")


def _read1(response: Any, timeout: float) -> bytes:
    """What has come of the body, b"" at its end."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException, ValueError) as error:
        raise _Cut(_why(error, timeout)) from None


def _why(error: Exception, timeout: float) -> str:
    """One line for a failed connection."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"nothing came for {timeout:g} s"
    return " ".join(str(getattr(reason, "strerror", None) or reason or type(reason).__name__).split())


def _validator(headers: HTTPMessage) -> str | None:
    """What If-Range may name: a strong ETag, or the date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _continues(headers: HTTPMessage, version: _Version, offset: int) -> bool:
    """Whether a 206 holds the bytes of this version from `offset` on."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    same = _validator(headers) in (None, version.validator)
    total = None if span is None or span[2] == "*" else int(span[2])
    whole = total is None or version.size is None or total == version.size
    return span is not None and same and int(span[1]) == offset and whole


def _read(note: Path) -> _Version | None:
    """The version noted, None where the note is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _Version(**json.loads(note.read_text(encoding="utf-8")))
    return None
