"""Callbacks of a training run: checkpoints, early stopping, progress, sample captions."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.optim.swa_utils import get_ema_multi_avg_fn

from captioner.config import TrainConfig
from captioner.data.annotations import Example
from captioner.data.clips import load_pixels
from captioner.data.dataset import Batch
from captioner.data.images import ImageError
from captioner.errors import UserError, decimals
from captioner.files import atomic_write
from captioner.progress import Bar

SAMPLE_SIZE = 256  # pixels of the images in TensorBoard
SCORES = {  # of an epoch, with the heads of their columns
    "train_loss": "loss",
    "reward": "reward",
    "val_loss": "val loss",
    "val_cider": "CIDEr",
    "val_bleu4": "BLEU-4",
    "val_rouge": "ROUGE",
    "val_distinct": "distinct",
    "val_bad_endings": "bad ends",
    "captions_per_s": "captions/s",
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it: a kill or a full disk leaves the previous one.

    Lightning's own writing uses the folder for temporary files, and copies from there if it is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_write(path) as part:
                try:
                    torch.save(checkpoint, part)
                except RuntimeError as error:
                    if "inline_container" not in str(error):  # torch's message if a write fails
                        raise
                    raise OSError("the disk is full") from None
        except UserError as error:
            raise UserError(f"{error}; the previous checkpoints are unchanged: --resume continues from them") from None


class MidEpochCheckpoint(ModelCheckpoint):
    """Timed checkpoints, but not after the last batch of an epoch: resumed from there, it would not be validated."""

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *arguments)


class TopKCheckpoint(ModelCheckpoint):
    """The best epochs, for averaging. A separate class, so that its state is not that of best.ckpt."""


class MovingAverage(WeightAveraging):
    """The moving average of the trained weights, with decay min(decay, (1 + n) / (10 + n)) after n steps.

    It is on the device of the training: Lightning would take that of the module, which is moved there later. A step
    updates all weights at once and never waits for the device, where Lightning's reads its counter back. Frozen weights
    stay as they are; buffers, such as the statistics of a BatchNorm, are those of the last step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self.decay = decay

    def setup(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, task, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, *_: Any) -> None:
        if trainer.global_step == self._latest_update_step:  # between the steps of accumulated gradients
            return
        n = self._latest_update_step
        self._latest_update_step = trainer.global_step
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        assert self._average_model is not None
        pairs = zip(self._average_model.module.parameters(), task.parameters(), strict=True)
        averages, weights = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        get_ema_multi_avg_fn(decay)(averages, weights, n)
        if own := list(self._average_model.module.buffers()):
            torch._foreach_copy_(own, list(task.buffers()))


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that also applies after resumption: a stopped run trains further only if given more `epochs`.

    Then its patience begins again, since the learning rate follows a longer schedule.
    """

    def __init__(self, patience: int, epochs: int, monitor: Monitor) -> None:
        super().__init__(monitor.score, mode=monitor.mode, patience=patience, check_finite=True)
        self.epochs = epochs

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.epochs > state_dict.get("epochs", self.epochs):  # older runs lack it
            self.wait_count = self.stopped_epoch = 0

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0


class Monitor(NamedTuple):
    """The score of a validation that is the best epoch's, and whether more (max) or less (min) of it is better."""

    score: str = "val_cider"
    mode: str = "max"


class TerminateRanks(Callback):
    """Ends the other processes, which would wait, after an error in the first; Lightning does so after Ctrl-C."""

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        launcher: Any = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # the latter is the same on Windows
            launcher.procs.clear()  # else Lightning, which monitors them, would end this process before its message


class Throughput(Callback):
    """Logs captions per second of training over all processes: with loading and waiting, without validation."""

    last_end: float | None = None  # of the previous batch of this epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        self.last_end = None

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self.last_end is not None:
            rate = trainer.world_size * len(batch.words) / (now - self.last_end)
            task.log_number("captions_per_s", rate, prog_bar=True)
        self.last_end = now


class ProgressBar(pl.callbacks.ProgressBar):
    """One bar, of the training or the validation of an epoch, with the time left of the whole run.

    The time left is that of the stages of the last epoch; in the first epoch that of the batches so far, and "over"
    before a validation has been timed.
    """

    INTERVAL = 0.25  # seconds between two readings of the scores, which wait for a GPU

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.bar: Bar | None = None
        self.stage, self.epoch, self.begun, self.read, self.scores = "", 0, 0.0, 0.0, ""
        self.seconds: dict[str, float] = {}  # of a whole training and a whole validation

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        self._begin("training", int(self.total_train_batches))

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._update(batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, task: Any) -> None:
        self._begin("validation", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update(batch_idx)

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        self._end()

    def _begin(self, stage: str, batches: int) -> None:
        self._end()
        if self.enabled:
            self.stage, self.epoch, self.begun = stage, self.trainer.current_epoch, time.monotonic()
            name = f"epoch {self.epoch + 1} of {self.trainer.max_epochs}"
            name += ", validation" if stage == "validation" else ""
            self.bar = Bar(desc=name, total=batches, unit="", note=self._note, leave=False)

    def _update(self, batch_idx: int) -> None:
        if self.bar is not None:
            self.bar.update(batch_idx + 1 - self.bar.n)

    def _end(self) -> None:
        """Close the bar, after the checkpoints of its stage, and keep the time of a stage that was not resumed."""
        if self.bar is not None:
            if self.bar.first and self.bar.first[0] == 1:
                self.seconds[self.stage] = time.monotonic() - self.begun
            self.bar.close()
            self.bar = None

    def _note(self, bar: Bar) -> str:
        """``loss 2.81, CIDEr 54.21, 12:40 left``; in a validation the time alone."""
        if self.stage == "validation":
            return self._time_left(bar)
        if not self.scores or time.monotonic() - self.read > self.INTERVAL:
            logged: dict[str, Any] = {**self.trainer.callback_metrics, **self.trainer.progress_bar_metrics}
            shown = {"train_loss": "loss", "reward": "reward", "val_cider": "CIDEr"}
            self.scores = ", ".join(
                f"{shown[name]} {decimals(float(logged[name]))}" for name in shown if name in logged
            )
            self.read = time.monotonic()
        return ", ".join(part for part in (self.scores, self._time_left(bar)) if part)

    def _time_left(self, bar: Bar) -> str:
        assert bar.total is not None
        measured = {self.stage: bar.total / bar.rate} if bar.rate else {}
        seconds = {**measured, **self.seconds}
        if self.stage not in seconds:
            return ""
        epoch, epochs = self.epoch, int(self.trainer.max_epochs or 0)
        every = self.trainer.check_val_every_n_epoch or 1
        validations = epochs // every - epoch // every - (self.stage == "validation")
        left = seconds[self.stage] * (1 - bar.n / bar.total) + seconds.get("training", 0) * (epochs - epoch - 1)
        over = "over " if validations and "validation" not in seconds else ""
        return f"{over}{bar.format_interval(left + seconds.get('validation', 0) * validations)} left"


class EpochScores:
    """Prints those scores of an epoch that are logged: on a terminal a row of a table, elsewhere a line by itself.

    Args:
        columns: the names of the logged scores, each with the head of its column
        repeat: the heads stand above every row, since other lines come between
    """

    def __init__(self, columns: Mapping[str, str], repeat: bool = False) -> None:
        self.columns, self.repeat, self.heads = columns, repeat, ""

    def print(self, trainer: pl.Trainer) -> str:
        """Print them, and return the scores as the line has them: ``val_loss 2.80  val_cider 54.21``."""
        logged = trainer.callback_metrics
        texts = {name: two_decimals(float(logged[name])) for name in self.columns if name in logged}
        line = "  ".join(f"{name} {text}" for name, text in texts.items())
        epoch, last = f"{trainer.current_epoch + 1}/{trainer.max_epochs}", f"{trainer.max_epochs}/{trainer.max_epochs}"
        if not sys.stdout.isatty():
            print(f"epoch {epoch}: {line}", flush=True)
            return line
        if "reward" in texts:
            texts.pop("train_loss", None)  # of self-critical training, which says nothing
        heads = {name: self.columns[name].rjust(6) for name in texts}
        width = max(5, len(last))
        above = "  ".join(["epoch".rjust(width), *heads.values()])
        row = "  ".join([epoch.rjust(width), *(text.rjust(len(heads[name])) for name, text in texts.items())])
        if above != self.heads or self.repeat:
            self.heads = above
            row = f"{above}\n{row}"
        print(row, flush=True)
        return line


def two_decimals(value: float) -> str:
    """``54.21``, but from 10,000 on without them."""
    return decimals(value) if abs(value) < 10_000 else f"{value:,.0f}"


class SampleCaptions(Callback):
    """Prints the scores of each validation, and adds captions of the same few images to samples.md and TensorBoard."""

    def __init__(self, folder: Path, examples: list[Example], number: int) -> None:
        step = max(1, len(examples) // max(1, number))
        self.folder, self.chosen = folder, dict([*enumerate(examples)][::step][:number])
        self.scores = EpochScores(SCORES)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        if not trainer.is_global_zero:
            return
        scores = self.scores.print(trainer)
        captions = task.val_captions
        chosen = {i: example for i, example in self.chosen.items() if i in captions}  # --check validates only a part
        rows = [f"| {e.path.name} | {captions[i]} | {' '.join(e.captions[0].split())} |" for i, e in chosen.items()]
        table = "\n".join(["| image | caption | a reference |", "|---|---|---|", *rows])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("captions", table, trainer.global_step)
                for number, (i, example) in enumerate(chosen.items()):
                    with suppress(ImageError):  # with cached features the image may be missing
                        image = draw_caption(example.path, task.model.frames, captions[i])
                        logger.experiment.add_image(f"samples/{number}", image, trainer.global_step, dataformats="HWC")
        with open(self.folder / "samples.md", "a", encoding="utf-8") as file:
            file.write(f"## Epoch {trainer.current_epoch + 1}: {scores}\n\n{table}\n\n")


def draw_caption(path: Any, frames: int, caption: str) -> np.ndarray:
    """(H, W, 3) uint8: an image, or the frames of a clip side by side, as the model receives it, above its caption."""
    image = load_pixels(path, SAMPLE_SIZE, frames)  # (3, size, size) or (frames, 3, size, size)
    pixels = torch.cat([*image], dim=-1) if frames else image
    text = "\n".join(textwrap.wrap(caption, pixels.shape[-1] // 6))
    page = Image.new("RGB", (pixels.shape[-1], SAMPLE_SIZE + 16 * (text.count("\n") + 1) + 8), "white")
    page.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    ImageDraw.Draw(page).text((4, SAMPLE_SIZE + 4), text, fill="black")
    return np.asarray(page)


def best_and_last(folder: Path, monitor: Monitor) -> list[Callback]:
    """best.ckpt, the epoch with the best `monitor`, and last.ckpt after every epoch."""
    return [
        ModelCheckpoint(folder, "best", monitor=monitor.score, mode=monitor.mode, enable_version_counter=False),
        ModelCheckpoint(folder, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False),
    ]


def make_callbacks(folder: Path, config: TrainConfig, examples: list[Example], monitor: Monitor) -> list[Callback]:
    """The callbacks of ``captioner train``; `examples` are those of validation."""
    best, last = best_and_last(folder, monitor)
    interval = timedelta(minutes=config.checkpoint_minutes)
    timed = MidEpochCheckpoint(folder, "last", train_time_interval=interval, enable_version_counter=False)
    parts = [TerminateRanks(), Throughput(), SampleCaptions(folder, examples, config.samples), best, timed, last]
    if config.keep:
        name = "epoch-{epoch}-cider-{val_cider:.2f}"
        options: dict[str, Any] = {"save_top_k": config.keep, "auto_insert_metric_name": False}
        parts.append(TopKCheckpoint(folder / "kept", name, monitor=monitor.score, mode=monitor.mode, **options))
    if config.ema_decay:
        parts.insert(0, MovingAverage(config.ema_decay))
    if config.patience:
        parts.insert(0, ResumableEarlyStopping(config.patience, config.epochs, monitor))
    return parts
