"""A memory-mapped file of image features: written once per encoder and data set, resumable, validated when opened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from captioner.errors import UserError, one_line
from captioner.files import publish, write_json
from captioner.progress import Bar

# Raised by the file system, json and numpy (whose header parser uses tokenize) when a file is missing or damaged.
READ_ERRORS = (OSError, EOFError, ValueError, LookupError, TypeError, RecursionError, OverflowError, TokenError)
Fingerprint = Mapping[str, str | int]
READERS = 4  # threads that read rows of one batch


class FeatureFile(NamedTuple):
    """fp16 features of N images, all of one shape, in a folder with ``features.npy`` and ``index.json``.

    The folder has its final name only when it is complete: see :func:`write_features`. The row of an image that could
    not be read is NaN.

    Open it in the process that reads it; never pickle it.
    """

    rows: np.ndarray  # (N, F) or (N, P, F) fp16, memory-mapped
    names: list[str]  # of the N images
    unreadable: np.ndarray  # (N,) bool, the images that could not be read

    @classmethod
    def open(cls, folder: Path, fingerprint: Fingerprint, shape: tuple[int, ...]) -> FeatureFile:
        """Open a complete file; `shape` is that of the features of one image.

        Raises:
            UserError: it is missing or damaged, or has another fingerprint: the message names each difference.
        """
        try:
            index, rows = _load(folder)
            # Index files of older versions have no "unreadable".
            bad = index["unreadable"] if "unreadable" in index else _nan_rows(rows)
            if not isinstance(bad, list) or not all(type(row) is int and 0 <= row < len(rows) for row in bad):
                raise ValueError("index.json is invalid")
            stored, expected = index["fingerprint"], (len(index["names"]), *shape)
            if stored == fingerprint and rows.shape != expected:
                raise ValueError(f"its shape is {rows.shape} and not {expected}")
        except READ_ERRORS as error:
            reason = one_line(error)
            raise UserError(
                f"{folder} is not a valid feature file ({reason}): delete it to have it made again"
            ) from None
        if stored != fingerprint:
            both = [(key, stored.get(key), fingerprint.get(key)) for key in sorted({*fingerprint, *stored})]
            differing = "; ".join(f"{key} {there} there, {here} here" for key, there, here in both if there != here)
            raise UserError(f"{folder} holds other features ({differing}): delete it or name another folder")
        unreadable = np.zeros(len(rows), dtype=bool)
        unreadable[bad] = True
        return cls(rows, index["names"], unreadable)


def read_rows(table: np.memmap, rows: np.ndarray, pinned: bool = False) -> Tensor:
    """These rows of a memory-mapped table, read from its file by several threads; `pinned` for a copy to a GPU.

    What is read is never mapped, so that the memory of the process does not grow with the part of the file read.

    Raises:
        UserError: the file cannot be read, or a row is zero, which no image has: it would train without complaint.
    """
    found = torch.empty((len(rows), *table.shape[1:]), dtype=torch.float16, pin_memory=pinned)
    memory = found.flatten(1).view(torch.uint8).numpy()  # (R, bytes)

    def read(part: np.ndarray) -> None:
        with FileIO(table.filename) as file:  # type: ignore[arg-type]
            for i in part:
                file.seek(table.offset + int(rows[i]) * memory.shape[1])
                if file.readinto(memory[i]) != memory.shape[1]:
                    raise OSError("the file is too short")

    try:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read, np.array_split(np.arange(len(rows)), READERS)))
    except OSError as error:
        raise UserError(f"{table.filename} cannot be read ({error}): run the command again") from error
    check_not_zero(found, rows, table.filename)
    return found


def check_not_zero(features: Tensor, rows: np.ndarray, name: object) -> None:
    """Raise UserError if the features (R, …) of one of these rows of the file `name` are all zero."""
    if len(zero := (~features.flatten(1).any(dim=1)).nonzero()):
        row = rows[zero[0, 0]]
        raise UserError(
            f"{name}: the features in row {row} are all zero: delete its folder to have them computed again"
        )


def _load(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The index and the memory-mapped rows; one of READ_ERRORS if a file is missing or damaged."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    rows = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)  # fails on a file that is too short
    if not isinstance(index["fingerprint"], dict) or not isinstance(index["names"], list):
        raise ValueError("index.json is invalid")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float16 or rows.ndim < 2:
        raise ValueError("features.npy is not float16 rows")
    return index, rows


def _nan_rows(rows: np.ndarray) -> list[int]:
    """Numbers of the rows of unreadable images. This reads the whole file."""
    return np.flatnonzero(np.isnan(rows.reshape(len(rows), -1)[:, 0])).tolist()


def feature_folder(cache: Path, label: str, fingerprint: Fingerprint) -> Path:
    """The folder of the features with this fingerprint: a readable label and a digest of the fingerprint."""
    digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:12]
    return cache / f"{label}-{digest}"


def write_features(
    folder: Path,
    fingerprint: Fingerprint,
    names: Sequence[str],
    shape: tuple[int, ...],
    rows_from: Callable[[int], Iterable[np.ndarray]],
) -> None:
    """Write the feature file at `folder` unless it exists.

    It is written under ``FOLDER.part`` and renamed when complete; after an interruption the next call continues where
    the part ends. If several processes call this at once, one writes and the others wait. `names` are those of the N
    images, `shape` that of the features of one; `rows_from(n)` yields (b, *shape) blocks from row n on.
    """
    part = folder.with_name(folder.name + ".part")
    index = {"fingerprint": dict(fingerprint), "names": list(names)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.exists():
                return
            shape = (len(names), *shape)
            done = _rows_done(part, index, shape)
            if done is None:
                _allocate(part, index, shape)
            rows = np.lib.format.open_memmap(part / "features.npy", mode="r+")
            _fill(rows, done or 0, part, rows_from)
            write_json(part / "index.json", {**index, "unreadable": _nan_rows(rows)})
            del rows
            (part / "progress").unlink(missing_ok=True)
            publish(part, folder, flush=False)
    except OSError as error:
        advice = "free disk space or choose another --data.feature_cache"
        raise UserError(f"the features cannot be written to {folder} ({error}): {advice}") from error


def _rows_done(part: Path, index: dict, shape: tuple[int, ...]) -> int | None:
    """The number of rows an interrupted run has written; None if there is no valid part of these features."""
    with contextlib.suppress(*READ_ERRORS):
        stored, rows = _load(part)
        progress = part / "progress"
        done = int(progress.read_text()) if progress.exists() else 0
        if {**stored, **index} == stored and rows.shape == shape and 0 <= done <= len(rows):
            return done
    return None


def _allocate(part: Path, index: dict, shape: tuple[int, ...]) -> None:
    """Create a new part and reserve its disk space: writing to a memory map on a full disk would kill the process."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        np.lib.format.open_memmap(part / "features.npy", mode="w+", dtype=np.float16, shape=shape).flush()
        if hasattr(os, "posix_fallocate"):
            with open(part / "features.npy", "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)  # it may fill the disk
        raise
    write_json(part / "index.json", index)


def _fill(rows: np.memmap, done: int, part: Path, rows_from: Callable[[int], Iterable[np.ndarray]]) -> None:
    """Write the rows after the first `done`, and after each block their number to ``progress``."""
    progress, label = part / "progress", part.stem.partition("-")[0][:24]
    with Bar(desc=f"features of {label}", total=len(rows), initial=done) as bar:
        for block in rows_from(done) if done < len(rows) else ():
            rows[done : done + len(block)] = block
            done += len(block)
            # After the rows, and replaced whole: a killed process leaves no count without its rows.
            progress.with_suffix(".new").write_text(str(done))
            publish(progress.with_suffix(".new"), progress, flush=False)
            bar.update(len(block))
    rows.flush()
