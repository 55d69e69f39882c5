"""A folder of part files, each the whole answer to so many images, that any number of interrupted runs complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from captioner.errors import UserError
from captioner.files import write_json, write_text

Record = dict[str, Any]
Answer = Callable[[Sequence[Any]], Iterable[Record]]  # the records of items, in their order, one at a time
ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be Unicode


class Parts:
    """Chunk n is the items n · size … (n + 1) · size − 1; its records, a JSON line an item, are ``part-n.jsonl``.

    A part is written under another name and renamed, so one that is there is whole, and the chunks without one are
    what is left to do. ``manifest.json`` says what the parts answer to; a run that asks anything else is refused.

    Args:
        folder: made when missing.
        items: what str() tells apart.
        size: items in a chunk, 1 or more; the last one may have fewer.
        about: plain values by name that the records depend on besides the items.
    """

    def __init__(self, folder: Path, items: Sequence[Any], size: int, about: Mapping[str, Any]) -> None:
        self.folder, self.items, self.size = folder, items, size
        digest = hashlib.sha256()
        for item in items:
            digest.update(os.fsencode(f"{item}\n"))
        inputs = {"images": len(items), "their names": digest.hexdigest()[:16], "part_size": size}
        self.manifest = {**inputs, **about}

    def __len__(self) -> int:
        return -(-len(self.items) // self.size)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep the folder to this run, made or found to hold parts of the same.

        Raises:
            UserError: it holds something else, another run writes there, or it cannot be written.
        """
        file = self.folder / "manifest.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=0):
                if file.exists():
                    self._compare(file)
                else:
                    others = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
                    if others:
                        raise UserError(f"{self.folder} holds other files ({others[0]} …): name another --output")
                    write_json(file, self.manifest)
                yield
        except Timeout:
            raise UserError(f"another run is writing to {self.folder}: wait for it or name another --output") from None
        except OSError as error:
            raise UserError(f"--output {self.folder} cannot be written ({error}): choose another") from None

    def _compare(self, file: Path) -> None:
        try:
            there = dict(json.loads(file.read_text(**ENCODING)))
            keys = sorted({*self.manifest, *there})
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{file} is not a manifest of captioner: name another --output") from None
        here = json.loads(json.dumps(self.manifest))
        differing = [f"{key} {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]
        differing = [line for key, line in zip(keys, differing, strict=True) if there.get(key) != here.get(key)]
        if differing:
            about = "; ".join(differing)
            raise UserError(f"{self.folder} holds parts of another run ({about}): delete it or name another --output")

    def chunk(self, number: int) -> Sequence[Any]:
        """Its items."""
        return self.items[number * self.size : (number + 1) * self.size]

    def todo(self) -> list[int]:
        """Numbers of the chunks without a part, ascending."""
        there = {path.name for path in self.folder.glob("part-*.jsonl")}
        return [number for number in range(len(self)) if _name(number) not in there]

    def write(self, number: int, records: Iterable[Record]) -> None:
        """The part of a chunk: a record for each of its items, in their order."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.folder / _name(number), lines, ENCODING["errors"])

    def records(self) -> Iterator[Record]:
        """Those of all items, in their order; one part is in memory at a time.

        Raises:
            UserError: a part is missing, damaged, or of another length than its chunk.
        """
        for number in range(len(self)):
            file = self.folder / _name(number)
            try:
                found = [json.loads(line) for line in file.read_text(**ENCODING).split("\n")[:-1]]
                items = self.chunk(number)
                if len(found) != len(items):
                    raise ValueError(f"{len(found)} lines for {len(items)} images")
                for record, item in zip(found, items, strict=True):
                    if not isinstance(record, dict) or not isinstance(record.get("error", record.get("caption")), str):
                        raise ValueError(f"a line has neither a caption nor an error of {item}")
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"{file} is damaged ({error}): delete it and run the same command again") from None
            yield from found


def work(parts: Parts, numbers: Iterable[int], answer: Answer) -> Iterator[int]:
    """Write the parts of these chunks; their numbers come as each is written.

    `answer` is called once, with the items of all of them, so that it may read ahead.
    """
    numbers = list(numbers)
    found = iter(answer([item for number in numbers for item in parts.chunk(number)]))
    for number in numbers:
        parts.write(number, [next(found) for _ in parts.chunk(number)])
        yield number


def _name(number: int) -> str:
    return f"part-{number:06}.jsonl"
