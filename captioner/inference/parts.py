"""A folder of part files, each with the records of a fixed number of images, completed over one or more runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from captioner.errors import UserError, counted
from captioner.files import write_json, write_text

Record = dict[str, Any]
SURROGATES = "surrogateescape"  # file names need not be Unicode


class PartFolder:
    """Chunk n is the items n · size … (n + 1) · size − 1; its records, a JSON line per item, are ``part-n.jsonl``.

    A part is written under another name and renamed: an existing part is complete, and chunks without one remain to be
    done. ``manifest.json`` holds the inputs of the parts, the names of the items, `size` and `settings`, by
    name; a run with another manifest is refused.
    """

    def __init__(self, folder: Path, items: Sequence[Any], size: int, settings: Mapping[str, Any]) -> None:
        self.folder, self.items, self.size = folder, items, size
        digest = hashlib.sha256(b"".join(os.fsencode(f"{item}\n") for item in items)).hexdigest()[:16]
        self.manifest = {"images": len(items), "their names": digest, "part_size": size, **settings}

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-len(self.items) // self.size)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder for this run; create it, or check its manifest."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=0):
                self._check_manifest(self.folder / "manifest.json")
                yield
        except Timeout:
            raise UserError(f"another run is writing to {self.folder}: wait for it or name another --output") from None
        except OSError as error:
            raise UserError(f"--output {self.folder} cannot be written ({error}): choose another") from None

    def _check_manifest(self, file: Path) -> None:
        """Write the manifest of a new folder, or compare that of an existing one."""
        if not file.exists():
            others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if others:
                raise UserError(f"{self.folder} holds other files ({others[0]} …): name another --output")
            return write_json(file, self.manifest)
        try:
            there = dict(json.loads(file.read_text("utf-8", SURROGATES)))
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{file} is not a manifest of captioner: name another --output") from None
        here = json.loads(json.dumps(self.manifest))
        keys = sorted(key for key in {**here, **there} if there.get(key) != here.get(key))
        if keys:
            differences = "; ".join(f"{key} {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)
            raise UserError(f"{self.folder} is of another run ({differences}): delete it or name another --output")

    def chunk(self, number: int) -> Sequence[Any]:
        """The items of a chunk."""
        return self.items[number * self.size : (number + 1) * self.size]

    def missing(self) -> list[int]:
        """Numbers of the chunks without a part, ascending."""
        return [number for number in range(len(self)) if not self._file(number).exists()]

    def done(self) -> int:
        """Number of items whose parts exist."""
        return len(self.items) - sum(len(self.chunk(number)) for number in self.missing())

    def write(self, number: int, records: Iterable[Record]) -> None:
        """Write the part of a chunk: a record for each of its items, in their order."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self._file(number), lines, SURROGATES)

    def write_each(self, numbers: Sequence[int], caption: Callable[[list[Any]], Iterable[Record]]) -> None:
        """Write the parts of these chunks, each when it is complete.

        `caption` is called once, with the items of all these chunks, so that images are read ahead; it yields their
        records in order, one at a time.
        """
        records = iter(caption([item for number in numbers for item in self.chunk(number)]))
        for number in numbers:
            self.write(number, [next(records) for _ in self.chunk(number)])

    def records(self) -> Iterator[Record]:
        """The records of all items, in their order; one part is in memory at a time. UserError if it is damaged."""
        for number in range(len(self)):
            file, items = self._file(number), self.chunk(number)
            try:
                found = [json.loads(line) for line in file.read_text("utf-8", SURROGATES).split("\n")[:-1]]
                if len(found) != len(items):
                    raise ValueError(f"{counted(len(found), 'line')} for {counted(len(items), 'image')}")
                for record, item in zip(found, items, strict=True):
                    if not isinstance(record, dict) or not isinstance(record.get("error", record.get("caption")), str):
                        raise ValueError(f"a line has neither a caption nor an error of {item}")
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"{file} is damaged ({error}): delete it and run the same command again") from None
            yield from found

    def remove(self) -> None:
        """Delete the folder, its manifest after the parts: what a killed process leaves is still of this run."""
        for number in range(len(self)):
            self._file(number).unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.jsonl"
