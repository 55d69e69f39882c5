"""A memory-mapped file of frozen-encoder features: knows arrays, not encoders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from captioner.errors import UserError
from captioner.files import write_text

# What comes of reading a damaged file: of the disk, of JSON, of numpy and of the tokenizer that it reads headers with.
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError, TokenError)
Fingerprint = Mapping[str, str | int]


class FeatureFile:
    """fp16 features of N images, each of the same shape, in a folder with ``features.npy`` and ``index.json``.

    A folder under its final name is whole. It is written under ``NAME.part`` and renamed at the end; an interrupted
    run leaves the part, and the next one goes on where it stopped. An image that could not be read has NaN.

    Attributes:
        rows: (N, F) or (N, P, F) fp16, memory-mapped. Open it in the process that reads it; never pickle it.
        names: the N images' names.
        unreadable: (N,) bool, the images that could not be read.
    """

    def __init__(self, folder: Path, rows: np.ndarray, names: list[str], unreadable: np.ndarray) -> None:
        self.folder, self.rows, self.names, self.unreadable = folder, rows, names, unreadable

    @classmethod
    def open(cls, folder: Path, fingerprint: Fingerprint, shape: tuple[int, ...]) -> FeatureFile:
        """Open a whole file; `shape` is that of the features of one image.

        Raises:
            UserError: it is missing or damaged, or made by another encoder or transform: the message says what
                differs.
        """
        try:
            index, rows = _read(folder)
            names, stored = index["names"], index["fingerprint"]
            unreadable = np.zeros(len(rows), dtype=bool)
            older = "unreadable" not in index
            bad = np.flatnonzero(_unreadable(rows)).tolist() if older else index["unreadable"]
            if not isinstance(bad, list) or not all(type(row) is int and 0 <= row < len(rows) for row in bad):
                raise ValueError("its unreadable rows are none")
            unreadable[bad] = True
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder} is not a whole feature file ({reason}): delete it to have it made again"
            ) from None
        keys = sorted({*fingerprint, *stored})
        differing = [
            f"{key} {stored.get(key)} there, {fingerprint.get(key)} here"
            for key in keys
            if stored.get(key) != fingerprint.get(key)
        ]
        if differing:
            raise UserError(f"{folder} holds other features ({'; '.join(differing)}): delete it or name another folder")
        if rows.shape != (len(names), *shape):
            raise UserError(
                f"{folder} has rows of the shape {rows.shape}, expected {(len(names), *shape)}: delete it to have it "
                "made again"
            )
        return cls(folder, rows, names, unreadable)


def _read(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What stands in the index, and the rows.

    Raises:
        one of DAMAGE: they are none.
    """
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    rows = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)  # refuses a file that is too short
    if (
        not isinstance(index, dict)
        or not isinstance(index["fingerprint"], dict)
        or not isinstance(index["names"], list)
    ):
        raise ValueError("its index is none")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float16 or rows.ndim < 2:
        raise ValueError("its rows are not in float16")
    return index, rows


def _unreadable(rows: np.ndarray) -> np.ndarray:
    """(N,) bool: the rows of images that could not be read. It reads the whole file, page by page."""
    return np.isnan(rows.reshape(len(rows), -1)[:, 0])


def feature_folder(cache: Path, label: str, fingerprint: Fingerprint) -> Path:
    """Where the features with this fingerprint belong: a readable label and a digest of the fingerprint."""
    digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:12]
    return cache / f"{label}-{digest}"


def write_features(
    folder: Path,
    fingerprint: Fingerprint,
    names: Sequence[str],
    shape: tuple[int, ...],
    rows_from: Callable[[int], Iterable[np.ndarray]],
) -> None:
    """Make the feature file at `folder` unless it is there, going on from an interrupted run.

    Several processes may call this at once: one works, the others wait.

    Args:
        folder: its final name.
        fingerprint: encoder, weights digest, transform, images.
        names: the N images' names, in the order of the rows.
        shape: of the features of one image.
        rows_from: called with the first row still missing; yields (b, *shape) blocks from there on.

    Raises:
        UserError: the folder cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    index = {"fingerprint": dict(fingerprint), "names": list(names)}
    progress = part / "progress"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.exists():
                return
            shape = (len(names), *shape)
            done = _rows_done(part, index, shape)
            if done is None:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                np.lib.format.open_memmap(part / "features.npy", mode="w+", dtype=np.float16, shape=shape).flush()
                try:
                    with open(part / "features.npy", "r+b") as file:
                        if hasattr(os, "posix_fallocate"):  # a map that finds the disk full would kill the process
                            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
                except OSError:
                    shutil.rmtree(part, ignore_errors=True)  # it may have all the room there was
                    raise
                (part / "index.json").write_text(json.dumps(index), encoding="utf-8")
                done = 0
            rows = np.load(part / "features.npy", mmap_mode="r+")
            with tqdm(
                total=len(names), initial=done, unit="image", desc=f"features {folder.name}", disable=None
            ) as bar:
                for block in rows_from(done) if done < len(names) else ():
                    rows[done : done + len(block)] = block
                    done += len(block)
                    # The rows are in the map before the count says so; a killed process loses neither.
                    progress.with_suffix(".new").write_text(str(done))
                    os.replace(progress.with_suffix(".new"), progress)
                    bar.update(len(block))
            rows.flush()
            unreadable = np.flatnonzero(_unreadable(rows)).tolist()
            del rows
            write_text(part / "index.json", json.dumps({**index, "unreadable": unreadable}))
            progress.unlink(missing_ok=True)
            os.replace(part, folder)
    except OSError as error:
        raise UserError(
            f"the features cannot be written to {folder} ({error}): free space there or choose another "
            "--data.feature_cache"
        ) from error


def _rows_done(part: Path, index: dict, shape: tuple[int, ...]) -> int | None:
    """Rows an interrupted run has written, or None where it did not get far enough to go on from."""
    try:
        there, rows = _read(part)
        if {key: there.get(key) for key in index} != index:
            return None
        progress = part / "progress"
        done = int(progress.read_text()) if progress.exists() else 0
        return done if rows.shape == shape and 0 <= done <= len(rows) else None
    except DAMAGE:
        return None
