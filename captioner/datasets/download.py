"""Download one file over HTTP: resumed after an interruption, restarted if the file has changed, renamed when whole.

urllib follows redirects, uses the proxies of the environment and has a timeout. pooch, requests, torch.hub and fsspec
do not resume a download; huggingface_hub does, but does not notice that the file has changed in the meantime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from captioner import __version__
from captioner.errors import UserError, one_line
from captioner.files import publish, write_json

TIMEOUT = 60.0  # seconds without a byte
RETRIES = 8  # in a row without progress: with the pauses, about three minutes
PAUSE = 1.0  # seconds before the first retry; doubles each time
LONGEST_PAUSE = 60.0
CHUNK = 1 << 20  # bytes
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses worth another try


class _Interrupted(Exception):
    """The response ended early or never came: worth another try. `after`: seconds the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _Refused(Exception):
    """A response that another try will not change."""


@dataclass(frozen=True)
class _RemoteFile:
    """The file that a .part is the beginning of. validator: its strong ETag or date; a part without cannot resume."""

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
    """Download a file to `path`, through `path`.part, which a later call resumes.

    Args:
        urls: addresses of the same file; if one fails, the next is tried.
        path: the final name, in an existing folder.
        size, sha256: size in bytes and hex digest of the file, if known.
        timeout: seconds without a byte after which a connection counts as interrupted.
        retries: in a row without progress.

    Raises:
        UserError: no address provides the file, the disk is full, or the file is not the expected one and was removed.
    """
    part, note = _part_paths(path)
    reasons = []
    try:
        with tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1000, disable=None) as bar:
            for url in urls:
                try:
                    _Download(url, part, note, size, timeout, bar).run(retries)
                    break
                except _Refused as refusal:
                    reasons.append(f"{url}: {refusal}")
            else:
                kept = f"; {part.stat().st_size:,} bytes are kept for the next try" if part.exists() else ""
                raise UserError(f"{path.name} cannot be downloaded: {'; '.join(reasons)}{kept}")
        try:
            verify(part, size, sha256)
        except UserError as error:
            note.unlink(missing_ok=True)
            part.unlink()
            raise UserError(f"{error}; it was removed: fetch it again") from None
        publish(part, path)
        note.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{part}: cannot be written: {error.strerror}; free disk space or choose another place"
        ) from None


def verify(path: Path, size: int | None, sha256: str | None) -> None:
    """Raise UserError if a file has another size in bytes or another SHA-256."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path}: has {found:,} bytes and not {size:,}: incomplete, or another file")
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
    """Raise UserError if the disk of a folder has fewer than `needed` free bytes; `what` says what needs them."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} needs {tqdm.format_sizeof(needed, 'B')} and the disk has "
            f"{tqdm.format_sizeof(free, 'B')} free; free disk space or choose another place"
        )


def partial_size(path: Path) -> int:
    """Size of `path`.part in bytes; 0 if it does not exist."""
    return _size(_part_paths(path)[0])


def _part_paths(path: Path) -> tuple[Path, Path]:
    """The part of a file, and the note of the :class:`_RemoteFile` it belongs to."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@dataclass(frozen=True)
class _Download:
    """The download of one address to one part; `size` is the expected one, `bar` the progress bar."""

    url: str
    part: Path
    note: Path
    size: int | None
    timeout: float
    bar: Any

    def run(self, retries: int) -> None:
        """Try until the part is whole, or until it did not grow in `retries` tries after the first in a row."""
        furthest, failures = _size(self.part), 0
        while True:
            try:
                return self._attempt()
            except _Interrupted as problem:
                reached = _size(self.part)
                failures = 0 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures > retries:
                    raise _Refused(f"{problem} (tried {failures} times without progress)") from None
                pause = max(problem.after, PAUSE * 2**failures * random.uniform(0.5, 1))
                pause = min(pause, LONGEST_PAUSE)
                self.bar.write(f"{self.url}: {problem}; trying again in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)

    def _attempt(self) -> None:
        """One request; returns when the part is whole."""
        remote, offset = _read_note(self.note), _size(self.part)
        if not (remote and remote.url == self.url and remote.validator and offset <= (remote.size or offset)):
            remote, offset = None, 0
        if remote and offset == remote.size:
            return
        with self._request(remote, offset) as response:
            remote, offset = self._accept(response, remote, offset)
            self._copy(response, remote, offset)

    def _request(self, remote: _RemoteFile | None, offset: int) -> HTTPResponse:
        """Ask for the file, from `offset` on if it is still `remote`."""
        headers = {"User-Agent": f"captioner/{__version__}", "Accept-Encoding": "identity"}
        if remote and remote.validator and offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": remote.validator}
        try:
            return urlopen(Request(self.url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    self.note.unlink(missing_ok=True)
                    raise _Interrupted("the file has become shorter; restarting") from None
                reason = f"HTTP {error.code} {error.reason}"
                if error.code in TEMPORARY:
                    seconds = error.headers.get("Retry-After", "")
                    raise _Interrupted(reason, float(seconds) if seconds.isdecimal() else 0) from None
                raise _Refused(reason) from None
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                raise _Refused(self._explain(error)) from None
            raise _Interrupted(self._explain(error)) from None
        except ValueError as error:  # a redirect to something that is no address
            raise _Refused(str(error)) from None

    def _accept(self, response: HTTPResponse, remote: _RemoteFile | None, offset: int) -> tuple[_RemoteFile, int]:
        """The file that the response is of, and the position in it at which the body starts."""
        headers = response.headers
        if headers.get_content_type() == "text/html":  # an existing part stays
            raise _Refused("the response is a web page and not the file; is there a login page between?")
        if response.status == 206 and remote and offset:
            if not _continues(headers, remote, offset):
                self.note.unlink(missing_ok=True)
                raise _Interrupted("the response has other bytes than requested; restarting")
            if remote.size is None and response.length is not None:
                remote = replace(remote, size=offset + response.length)
            return remote, offset
        if response.status != 200:
            raise _Refused(f"HTTP {response.status} was not expected")
        remote = _RemoteFile(self.url, _validator(headers), response.length)
        if self.size is not None and remote.size not in (None, self.size):
            raise _Refused(f"has {remote.size:,} bytes and not {self.size:,}: another file")
        return remote, 0

    def _copy(self, response: HTTPResponse, remote: _RemoteFile, offset: int) -> None:
        """Append the body to the part, of which the first `offset` bytes stay."""
        check_free_space(self.part.parent, (remote.size or offset) - offset, f"the rest of {self.part.stem}")
        self.bar.reset(remote.size)
        self.bar.n = self.bar.initial = offset
        with open(self.part, "ab" if offset else "wb") as file:
            if not offset:
                write_json(self.note, asdict(remote))
            while chunk := self._read(response):
                file.write(chunk)
                self.bar.update(len(chunk))
            reached = file.tell()
        if remote.size is not None and reached < remote.size:
            raise _Interrupted(f"interrupted after {reached:,} of {remote.size:,} bytes")

    def _read(self, response: HTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK)
        except (OSError, HTTPException, ValueError) as error:
            raise _Interrupted(self._explain(error)) from None

    def _explain(self, error: Exception) -> str:
        """One line for a failed connection."""
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no data for {self.timeout:g} s"
        return getattr(reason, "strerror", None) or one_line(reason)


def _validator(headers: HTTPMessage) -> str | None:
    """The value for If-Range: a strong ETag, or the date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _continues(headers: HTTPMessage, remote: _RemoteFile, offset: int) -> bool:
    """Whether a 206 response has the bytes of this file from `offset` on."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if span is None or int(span[1]) != offset or _validator(headers) != remote.validator:
        return False
    return span[2] == "*" or remote.size in (None, int(span[2]))


def _read_note(note: Path) -> _RemoteFile | None:
    """The remote file in the note; None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _RemoteFile(**json.loads(note.read_text(encoding="utf-8")))
    return None
