"""Download one file over HTTP: resumed after an interruption, restarted if the file has changed, renamed when whole.

urllib follows redirects, uses the proxies of the environment and has a timeout. pooch, requests, torch.hub and fsspec
do not resume a download; huggingface_hub does, but does not detect that the file has changed in the meantime.
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
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses after which to try again


class _Interrupted(Exception):
    """The response ended early or is missing: try again. `after`: seconds to wait, from the server's Retry-After."""

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
    """Download a file to `path`, in an existing folder, through `path`.part, which a later call resumes.

    The next of the `urls` is tried if one fails, after `retries` in a row without progress; a connection counts as
    interrupted after `timeout` seconds without a byte. A file of another `size` in bytes or SHA-256 is removed.
    """
    part, reasons = path.with_name(f"{path.name}.part"), []
    try:
        with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            for url in urls:
                attempts = _Download(url, part, size, timeout, bar)
                try:
                    attempts.run(retries)
                    break
                except _Refused as refusal:
                    reasons.append(f"{url}: {refusal}")
            else:
                kept = f"; {_size(part):,} bytes are kept for the next try" if part.exists() else ""
                raise UserError(f"{path.name} cannot be downloaded: {'; '.join(reasons)}{kept}")
        try:
            verify(part, size, sha256)
        except UserError as error:
            attempts.note.unlink(missing_ok=True)
            part.unlink()
            raise UserError(f"{error}; it was removed: fetch it again") from None
        publish(part, path)
        attempts.note.unlink(missing_ok=True)
    except OSError as error:
        advice = "free disk space or choose another place"
        raise UserError(f"{part}: cannot be written: {error.strerror}; {advice}") from None


def verify(path: Path, size: int | None, sha256: str | None) -> None:
    """Raise UserError if a file has another size in bytes or another SHA-256."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path}: has {found:,} bytes and not {size:,}: incomplete, or another file")
    if sha256 is not None:
        digest, about = hashlib.sha256(), f"checking {path.name}"
        with open(path, "rb") as file, tqdm.wrapattr(file, "read", found, desc=about, disable=None) as watched:
            while chunk := watched.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise UserError(f"{path}: its SHA-256 is {digest.hexdigest()} and not {sha256}: damaged, or another file")


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError if the disk of a folder has fewer than `needed` free bytes; `what` is their purpose."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        needs, has = (tqdm.format_sizeof(size, "B") for size in (needed, free))
        advice = "free disk space or choose another place"
        raise UserError(f"{folder}: {what} needs {needs} and the disk has {has} free; {advice}")


def partial_size(path: Path) -> int:
    """Size of `path`.part in bytes; 0 if it does not exist."""
    return _size(path.with_name(f"{path.name}.part"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@dataclass(frozen=True)
class _Download:
    """The download of one address to one part; `size` is the expected one, `bar` the progress bar."""

    url: str
    part: Path
    size: int | None
    timeout: float
    bar: Any

    @property
    def note(self) -> Path:
        """The file with the :class:`_RemoteFile` that the part belongs to."""
        return self.part.with_name(f"{self.part.name}.json")

    def run(self, retries: int) -> None:
        """Try until the part is complete, or until it has not grown in 1 + `retries` tries in a row."""
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
                pause = min(LONGEST_PAUSE, max(problem.after, PAUSE * 2**failures * random.uniform(0.5, 1)))
                self.bar.write(f"{self.url}: {problem}; trying again in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)

    def _attempt(self) -> None:
        """One request; returns when the part is complete."""
        remote, offset = None, _size(self.part)
        with contextlib.suppress(OSError, ValueError, TypeError):  # the note is missing or damaged
            remote = _RemoteFile(**json.loads(self.note.read_text(encoding="utf-8")))
        if not (remote and remote.url == self.url and remote.validator and 0 < offset <= (remote.size or offset)):
            remote, offset = None, 0
        elif offset == remote.size:
            return
        with self._request(remote, offset) as response:
            remote, offset = self._accept(response, remote, offset)
            self._copy(response, remote, offset)

    def _request(self, remote: _RemoteFile | None, offset: int) -> HTTPResponse:
        """Request the file, from `offset` on if it is still `remote`."""
        headers = {"User-Agent": f"captioner/{__version__}"}
        if remote:
            headers |= {"Range": f"bytes={offset}-", "If-Range": str(remote.validator)}
        try:
            return urlopen(Request(self.url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            with error:
                if error.code == 416 and remote:
                    self._restart("the file has become shorter")
                reason = f"HTTP {error.code} {error.reason}"
                if error.code not in TEMPORARY:
                    raise _Refused(reason) from None
                seconds = error.headers.get("Retry-After", "")
                raise _Interrupted(reason, float(seconds) if seconds.isdecimal() else 0) from None
        except (OSError, HTTPException) as error:
            certificate = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
            raise (_Refused if certificate else _Interrupted)(self._explain(error)) from None
        except ValueError as error:  # a redirect to something that is no address
            raise _Refused(str(error)) from None

    def _restart(self, reason: str) -> None:
        self.note.unlink(missing_ok=True)
        raise _Interrupted(f"{reason}; restarting") from None

    def _accept(self, response: HTTPResponse, remote: _RemoteFile | None, offset: int) -> tuple[_RemoteFile, int]:
        """The file that the response is of, and the position in it at which the body starts."""
        headers = response.headers
        if headers.get_content_type() == "text/html":  # an existing part stays
            raise _Refused("the response is a web page and not the file; is it a login page?")
        if response.status == 206 and remote:
            if not _continues(headers, remote, offset):
                self._restart("the response has other bytes than requested")
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
    sizes = r"\d+|\*" if remote.size is None else rf"{remote.size}|\*"
    span = re.fullmatch(rf"bytes {offset}-\d+/({sizes})", headers.get("Content-Range", "").strip())
    return span is not None and _validator(headers) == remote.validator
