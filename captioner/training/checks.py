"""Checks of a training: a dry run that measures its cost, and warnings about unreliable results."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from captioner import progress
from captioner.data.addresses import StoredImage, is_address
from captioner.data.annotations import Example
from captioner.data.images import open_file
from captioner.data.shards import Member
from captioner.data.vocabulary import UNK
from captioner.devices import gib
from captioner.errors import UserError, counted
from captioner.training.datamodule import CaptionData

MIN_SECONDS = 3.0  # of training timed in a dry run
MAX_SAME = 0.5  # share of validation images with the same caption
MIN_COVERAGE = 0.9  # share of the words of the validation captions in the vocabulary
MAX_COMPARED = 500  # validation images whose bytes are compared with training images of the same size
MAX_CANDIDATES = 20  # training images that each of them is compared with


class DryRun(Callback):
    """Stops a training once MIN_SECONDS and `min_batches` are timed, after one to warm up, and times its validation."""

    def __init__(self, min_batches: int) -> None:
        self.min_batches = min_batches
        self.batch_ends: list[float] = []
        self.validation: list[float] = []  # start and end
        self.images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.batch_ends.append(time.perf_counter())  # where the only batch of an epoch starts

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        warm_up = batch_idx == 0 and trainer.num_training_batches > 1
        self.batch_ends = [now] if warm_up else [*self.batch_ends, now]
        timed = len(self.batch_ends) - 1
        trainer.should_stop = timed >= self.min_batches and now - self.batch_ends[0] >= MIN_SECONDS

    def on_train_epoch_end(self, trainer: pl.Trainer, task: Any) -> None:
        trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.validation.append(time.perf_counter())

    def on_validation_batch_end(self, trainer: pl.Trainer, task: Any, *_: Any) -> None:
        self.images = len(task.val_captions)  # of this process alone

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        self.validation.append(time.perf_counter())

    def report(self, trainer: pl.Trainer, data: CaptionData, batches: int, val_interval: int, folder: Path) -> str:
        """Lines on time, memory and disk space of the whole training; `batches` is their number in an epoch."""
        epochs, images, splits = int(trainer.max_epochs or 0), len(data.val.examples), (data.train, data.val)
        batch = (self.batch_ends[-1] - self.batch_ends[0]) / (len(self.batch_ends) - 1)
        epoch, number = batches * batch, counted(batches, "batch")
        validation = (self.validation[1] - self.validation[0]) / max(1, self.images) * images / trainer.world_size
        missing = sum(split.missing for split in splits)
        extraction = sum(split.missing * split.seconds for split in splits)
        features = sum(split.nbytes for split in splits if split.missing)
        total = epochs * epoch + epochs // val_interval * validation + extraction
        files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(folder).free
        lines = (
            [f"features: of {counted(missing, 'image')}, still to compute: {duration(extraction)}"] if missing else []
        )
        lines += [
            f"training: {1000 * batch:,.0f} ms a batch, {number} an epoch: {duration(epoch)} an epoch",
            f"validation: {counted(images, 'image')}, captioned and scored: {duration(validation)}",
            f"in all: {duration(total)} for {counted(epochs, 'epoch')}, unless early stopping ends it before",
        ]
        if memory := peak_memory(trainer.strategy.root_device):
            lines.append(f"memory: peak of {' and '.join(memory)}")
        lines.append(f"disk: {gib(files)} for checkpoints and logs, {gib(features)} for features; {gib(free)} are free")
        if files + features > free:
            lines.append("the disk is too small: name another --output or --data.feature_cache")
        return "\n".join(lines)


def peak_memory(device: torch.device) -> list[str]:
    """The most memory used so far, ``2 GB in this process`` (but on Windows, which lacks the count), and on a GPU."""
    memory = []
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        memory.append(f"{gib(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)} in this process")
    if device.type == "cuda":
        memory.append(f"{gib(torch.cuda.max_memory_allocated(device))} on the GPU")
    return memory


def duration(seconds: float) -> str:
    """A time in at most two units.

    >>> duration(0.4), duration(75), duration(4000), duration(200000)
    ('0.4 s', '1 min 15 s', '1 h 7 min', '2 d 8 h')
    """
    for (name, size), (small, unit) in pairwise((("d", 86400), ("h", 3600), ("min", 60), ("s", 1))):
        if seconds >= size:
            whole, rest = divmod(round(seconds / unit), size // unit)
            return f"{whole} {name} {rest} {small}" if rest else f"{whole} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


class SanityChecks(Callback):
    """Prints warnings on standard error as they occur, and at the end again those that still apply."""

    def __init__(self, data: CaptionData) -> None:
        self.data = data
        self.of_data: list[str] = []
        self.of_captions: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        if trainer.is_global_zero:
            train, val = self.data.train.examples, self.data.val.examples
            self.of_data = [*shared_images(train, val), *unknown_words(self.data)]
            warn(self.of_data)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        # After the first of several epochs the captions may all be the same; a dry run has only some of them.
        complete = len(task.val_captions) == len(self.data.val.examples)
        if trainer.is_global_zero and complete and (trainer.current_epoch > 0 or trainer.max_epochs == 1):
            self.of_captions = same_caption(task.val_captions.values())
            warn(self.of_captions)

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        warn(f"still at the end: {line}" for line in (*self.of_data, *self.of_captions))


def warn(lines: Iterable[str]) -> None:
    """Print warnings on standard error."""
    for line in lines:
        progress.warn(f"captioner train: warning: {line}")


def same_caption(captions: Iterable[str]) -> list[str]:
    """A warning if most images have the same caption."""
    counts = Counter(captions)
    total = counts.total()
    caption, most = counts.most_common(1)[0] if counts else ("", 0)
    if most < 3 or most <= MAX_SAME * total:
        return []
    return [
        f"{100 * most / total:.0f} % of the {total:,} validation images have the caption {caption!r}: the model "
        "ignores the images; train longer or with another --train.lr, and check the captions with data inspect"
    ]


def unknown_words(data: CaptionData) -> list[str]:
    """A warning if the vocabulary lacks too many words of the validation captions."""
    flat = data.val_set.flat
    share = float((flat != UNK).mean()) if len(flat) else 1.0
    if share >= MIN_COVERAGE:
        return []
    return [
        f"the vocabulary of {len(data.vocabulary):,} words has {100 * share:.1f} % of the words of the validation "
        f"captions, and the model never generates the others: lower --data.min_count ({data.data.min_count}), "
        "or train on captions like those"
    ]


def shared_images(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """A warning if validation images are training images: the same files, or local files with the same bytes."""
    by_path = {example.path: example for example in train}
    pairs = [(example, by_path[example.path]) for example in val if example.path in by_path]
    by_size: dict[int, list[Example]] = {}
    for example in train:
        by_size.setdefault(_size(example.path), []).append(example)
    by_size.pop(0, None)
    same_size = [example for example in val if example.path not in by_path and _size(example.path) in by_size]
    compared = same_size[:: max(1, -(-len(same_size) // MAX_COMPARED))]
    partial, digest = len(compared) < len(same_size), cache(_digest)
    for example in compared:
        candidates = by_size[_size(example.path)]
        partial = partial or len(candidates) > MAX_CANDIDATES
        same = (other for other in candidates[:MAX_CANDIDATES] if digest(other.path) == digest(example.path))
        pairs += [(example, other) for other in islice(same, 1)]
    if not pairs:
        return []
    at_least = "at least " if partial and len(pairs) < len(val) else ""
    return [
        f"{at_least}{len(pairs):,} of {len(val):,} validation images are training images, too "
        f"({pairs[0][0].name} is {pairs[0][1].name}), so that the scores are too high: remove them from one of the "
        "splits; data inspect lists them"
    ]


def _digest(path: Any) -> object:
    with suppress(OSError, UserError), open_file(path) as file:
        return hashlib.blake2b(file.read(), digest_size=16).digest()
    return object()  # equal to no other: the file is missing


def _size(path: Any) -> int:
    """Bytes of a file; 0 for an album, a missing file and a file on another machine."""
    if isinstance(path, Member):
        return 0 if is_address(path.shard) else path.size
    if isinstance(path, StoredImage):
        return 0
    try:
        return 0 if os.path.isdir(path) else os.stat(path).st_size
    except OSError:
        return 0
