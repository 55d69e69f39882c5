"""Dry run of a training (``captioner train --check``): how much time, memory and disk space the whole will take."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from captioner.training.datamodule import CaptionData

MIN_SECONDS = 3.0  # of timed training


class DryRun(Callback):
    """Stops a training once enough batches are timed, and times its validation.

    Args:
        min_batches: fewest batches to time; one more warms up, where the epoch has several.
    """

    def __init__(self, min_batches: int = 2) -> None:
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
        """Lines on time, memory and disk space of the whole training.

        Args:
            trainer, data: of the dry run.
            batches: in an epoch.
            val_interval: epochs from one validation to the next.
            folder: with the checkpoints of the dry run.
        """
        epochs, images = int(trainer.max_epochs or 0), len(data.val.examples)
        batch = (self.batch_ends[-1] - self.batch_ends[0]) / (len(self.batch_ends) - 1)
        validation = (self.validation[1] - self.validation[0]) / max(1, self.images) * images / trainer.world_size
        sampled = [split for split in (data.train, data.val) if split.missing]
        missing = sum(split.missing for split in sampled)
        extraction = sum(split.missing * split.seconds for split in sampled)
        features = sum(split.missing * split.bytes for split in sampled)
        total = epochs * batches * batch + epochs // val_interval * validation + extraction
        files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(folder).free
        gpu = f", {gib(torch.cuda.max_memory_allocated())} on the GPU" if torch.cuda.is_available() else ""
        held = "held in memory" if features <= data.data.feature_memory * 2**30 else "read from the disk"
        epoch = duration(batches * batch)
        lines = [f"features: of {missing:,} images, still to compute: {duration(extraction)}"] if missing else []
        lines += [
            f"training: {1000 * batch:,.0f} ms a batch, {batches:,} batches an epoch: {epoch} an epoch",
            f"validation: {images:,} images, captioned and scored: {duration(validation)}",
            f"in all: {duration(total)} for {epochs} epochs, unless early stopping ends it before",
            f"memory: peak of {gib(_peak_memory())} in this process{gpu}",
        ]
        if features:
            lines.append(f"features of {gib(features)} will be {held}")
        lines.append(f"disk: {gib(files)} for checkpoints and logs, {gib(features)} for features; {gib(free)} are free")
        if files + features > free:
            lines.append("the disk is too small: name another --output or --data.feature_cache")
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in at most two units.

    >>> duration(0.4), duration(75), duration(4000), duration(200000)
    ('0.4 s', '1 min 15 s', '1 h 7 min', '2 d 8 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    place = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (name, size), small = units[place], units[place + 1 : place + 2]
    rounded = round(seconds / small[0][1]) * small[0][1] if small else round(seconds)
    rest = "".join(f" {rounded % size // s} {n}" for n, s in small if rounded % size // s)
    return f"{rounded // size} {name}{rest}"


def gib(size: float) -> str:
    """Bytes in GB of 2³⁰, small sizes in MB of 2²⁰.

    >>> gib(2**29), gib(2**20)
    ('0.5 GB', '1 MB')
    """
    return f"{size / 2**30:.1f} GB" if size >= 2**28 else f"{math.ceil(size / 2**20)} MB"


def _peak_memory() -> int:
    """Bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
