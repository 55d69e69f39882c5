"""What a training run shows and keeps while it goes."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor

from captioner.config import TrainConfig
from captioner.data.annotations import Example
from captioner.data.clips import load_pixels
from captioner.data.dataset import Batch
from captioner.data.images import ImageError
from captioner.errors import UserError
from captioner.files import atomic_write

SIDE = 256  # pixels of the images in TensorBoard


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints are written beside their place and renamed, so a kill or a full disk leaves the one before.

    Lightning's own go through the folder for temporary files, and from another disk they are copied, not renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it.

        Raises:
            UserError: there is no room, or the folder cannot be written.
        """
        try:
            with atomic_write(path) as part:
                try:
                    torch.save(checkpoint, part)
                except RuntimeError as error:
                    if "inline_container" not in str(error):  # torch's own words for a failed write
                        raise
                    raise OSError("the disk is full") from None
        except UserError as error:
            raise UserError(f"{error}; what was saved before stays, and --resume continues from it") from None


class Timed(ModelCheckpoint):
    """Checkpoints in mid-epoch. None after the last batch: a run resumed from it would not validate that epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """That of the end of the epoch follows, after the validation."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *arguments)


class Together(Callback):
    """Where the first of several processes stops, the others are ended: they would wait for it, and then complain."""

    def on_exception(self, trainer: pl.Trainer, task: Any, exception: BaseException) -> None:
        """Before the connection to them is cut; Lightning does so itself at Ctrl-C only."""
        launcher: Any = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
            launcher.procs.clear()  # or Lightning, which watches them, would end this one, too, before it has spoken


class Throughput(Callback):
    """Logs captions per second of training, over all processes, without the validations."""

    before: float | None = None  # when the last batch ended

    def on_train_epoch_start(self, trainer: pl.Trainer, task: Any) -> None:
        """Begin anew: the first batch of an epoch has no batch before it."""
        self.before = None

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """From the end of one batch to the end of the next, loading and waiting for the device included."""
        now = time.perf_counter()
        if self.before is not None:
            rate = trainer.world_size * len(batch.words) / (now - self.before)
            task.log("captions_per_s", rate, prog_bar=True, batch_size=1)
        self.before = now


class Bar(TQDMProgressBar):
    """Lightning's progress bar without the number of the logger's version."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """What is shown behind the bar."""
        return {name: value for name, value in super().get_metrics(*arguments).items() if name != "v_num"}


class Samples(Callback):
    """After each validation: one line of scores, and the captions of a few images, always the same ones.

    The captions are appended to samples.md in the run's folder, and go with their images to TensorBoard.
    """

    def __init__(self, folder: Path, examples: list[Example], number: int) -> None:
        step = max(1, len(examples) // max(1, number))
        self.folder, self.chosen = folder, {i: examples[i] for i in list(range(0, len(examples), step))[:number]}

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        """Write them."""
        if not trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = (
            "train_loss",
            "val_loss",
            "val_cider",
            "val_bleu4",
            "val_rouge",
            "val_distinct",
            "val_bad_endings",
            "reward",
            "captions_per_s",
        )
        line = "  ".join(f"{name} {scores[name]:.4g}" for name in shown if name in scores)
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {line}", flush=True)
        chosen = {i: example for i, example in self.chosen.items() if i in task.found}  # --check does not come to all
        rows = [f"| {e.path.name} | {task.found[i]} | {' '.join(e.captions[0].split())} |" for i, e in chosen.items()]
        table = "\n".join(["| image | caption | a reference |", "|---|---|---|", *rows])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("captions", table, trainer.global_step)
                for number, (i, example) in enumerate(chosen.items()):
                    with suppress(ImageError):  # with cached features nobody needs the images any more
                        image = captioned(example.path, task.model.frames, task.found[i])
                        logger.experiment.add_image(f"samples/{number}", image, trainer.global_step, dataformats="HWC")
        with open(self.folder / "samples.md", "a", encoding="utf-8") as file:
            file.write(f"## Epoch {trainer.current_epoch + 1}: {line}\n\n{table}\n\n")


def captioned(path: Any, frames: int, caption: str) -> np.ndarray:
    """What the model sees of an image, or of the frames of a clip side by side, and its caption below.

    (H, W, 3) uint8.
    """
    seen = load_pixels(path, SIDE, frames)  # (3, SIDE, SIDE) or (frames, 3, SIDE, SIDE)
    pixels = torch.cat([*seen], dim=-1) if frames else seen
    text = "\n".join(textwrap.wrap(caption, pixels.shape[-1] // 6))
    page = Image.new("RGB", (pixels.shape[-1], SIDE + 16 * (text.count("\n") + 1) + 8), "white")
    page.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    ImageDraw.Draw(page).text((4, SIDE + 4), text, fill="black")
    return np.asarray(page)


class Patience(EarlyStopping):
    """Early stopping that stays stopped: a run it has ended does not train on when it is resumed."""

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        """The epoch it stopped at is part of the checkpoint."""
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0


class Kept(ModelCheckpoint):
    """The best epochs, for averaging; another class than that of best.ckpt, so that both have their own state."""


def moving_average(decay: float, average: Tensor, current: Tensor, updates: Tensor) -> Tensor:
    """The average after one more step: decay min(decay, (1 + n) / (10 + n)) forgets the first weights soon."""
    warming = (1 + updates) / (10 + updates)  # stays on the device: nothing waits for it
    return average.lerp(current, (1 - warming.clamp(max=decay)).to(average.dtype))


def callbacks(folder: Path, config: TrainConfig, examples: list[Example]) -> list[Callback]:
    """Everything a run needs: averages, samples, early stopping, and best.ckpt and last.ckpt.

    last.ckpt is written after every epoch and, in mid-epoch, every `checkpoint_minutes`.
    """
    last: dict[str, Any] = {"dirpath": folder, "filename": "last", "enable_version_counter": False}
    interval = timedelta(minutes=config.checkpoint_minutes)
    parts: list[Callback] = [
        *([Bar()] if sys.stderr.isatty() else []),  # no bar in a log
        Together(),
        Throughput(),
        Samples(folder, examples, config.samples),
        ModelCheckpoint(folder, "best", monitor="val_cider", mode="max", enable_version_counter=False),
        Timed(**last, train_time_interval=interval),
        ModelCheckpoint(**last, every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    if config.keep:
        name = "epoch-{epoch}-cider-{val_cider:.2f}"
        kept: dict[str, Any] = {"save_top_k": config.keep, "auto_insert_metric_name": False}
        parts.append(Kept(folder / "kept", name, monitor="val_cider", mode="max", **kept))
    if config.ema_decay:
        parts.insert(0, WeightAveraging(avg_fn=partial(moving_average, config.ema_decay), use_buffers=False))
    if config.patience:
        parts.insert(0, Patience("val_cider", mode="max", patience=config.patience, check_finite=True))
    return parts
