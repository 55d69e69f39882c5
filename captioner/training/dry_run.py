"""A first look at a training: how long it will take, and how much memory and room."""

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

SECONDS = 3.0  # so long batches are timed, two at least


class Check(Callback):
    """Stops a training when two batches are timed, or more if they are quick, and times its validation.

    Args:
        fewest: batches that are timed at least; one more goes before, which warms up.
    """

    def __init__(self, fewest: int = 2) -> None:
        self.fewest = fewest
        self.ends: list[float] = []
        self.validation: list[float] = []  # beginning and end
        self.images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        """Where the first batch begins, for an epoch of one."""
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Enough is enough."""
        now = time.perf_counter()
        self.ends = [now] if batch_idx == 0 and trainer.num_training_batches > 1 else [*self.ends, now]
        timed = len(self.ends) - 1
        trainer.should_stop = timed >= self.fewest and now - self.ends[0] >= SECONDS

    def on_train_epoch_end(self, trainer: pl.Trainer, task: Any) -> None:
        """One epoch is more than enough."""
        trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, task: Any) -> None:
        """The clock of the validation."""
        self.validation.append(time.perf_counter())

    def on_validation_batch_end(self, trainer: pl.Trainer, task: Any, *_: Any) -> None:
        """Captions so far."""
        self.images = len(task.found)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        """The scores are there, too."""
        self.validation.append(time.perf_counter())

    def report(self, data: CaptionData, world: int, batches: int, epochs: int, validations: int, folder: Path) -> str:
        """Some lines: time, memory and room of the whole training.

        Args:
            data: what is trained on.
            world: processes.
            batches: of an epoch.
            epochs, validations: of the training.
            folder: with the checkpoints that were written.
        """
        batch = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        image = (self.validation[1] - self.validation[0]) / max(1, self.images)
        validation = image * len(data.val.examples) / world
        lines, total = [], epochs * batches * batch + validations * validation
        missing = [split for split in (data.train, data.val) if split.missing]
        if missing:
            number = sum(split.missing for split in missing)
            seconds = sum(split.missing * split.seconds for split in missing)
            total += seconds
            lines.append(f"features: of {number:,} images, still to compute: {duration(seconds)}")
        epoch = duration(batches * batch)
        lines.append(f"training: {1000 * batch:,.0f} ms a batch, {batches:,} batches an epoch: {epoch} an epoch")
        lines.append(f"validation: {len(data.val.examples):,} images, captioned and scored: {duration(validation)}")
        lines.append(f"in all: {duration(total)} for {epochs} epochs, if it does not stop before")
        lines.append(f"memory: {gib(_memory())} at the most in this process{_of_gpu()}")
        later = sum(split.missing * split.bytes for split in missing)
        if later:
            held = "held in memory" if later <= data.data.feature_memory * 2**30 else "read from the disk"
            lines.append(f"features of {gib(later)} will be {held}")
        files = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        free = shutil.disk_usage(folder).free
        lines.append(
            f"room: {gib(sum(files))} for checkpoints and logs, {gib(later)} for features; {gib(free)} are free"
        )
        if sum(files) + later > free:
            lines.append("that is not enough room: name another --output or --data.feature_cache")
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in two units at most.

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
    """Bytes in GB of 2³⁰.

    >>> gib(2**29), gib(2**20)
    ('0.5 GB', '1 MB')
    """
    return f"{size / 2**30:.1f} GB" if size >= 2**28 else f"{math.ceil(size / 2**20)} MB"


def _memory() -> int:
    """Bytes that this process had at the most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _of_gpu() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", {gib(torch.cuda.max_memory_allocated())} on the GPU"
