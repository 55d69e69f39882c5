"""The Lightning Trainer of a run: precision, loggers, warnings; and its errors that the user can fix."""

from __future__ import annotations

import logging
import re
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from captioner.errors import REFUSALS, UserError
from captioner.models.checkpoint import read_checkpoint, save_slim
from captioner.training.callbacks import AtomicCheckpointIO, ProgressBar

IRRELEVANT_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # it has config.yaml, and in a resumed run the checkpoints
    ".*isinstance.treespec, LeafSpec.* is deprecated",  # in Lightning's own code
    "The number of training batches .* is smaller than the logging interval",  # each epoch is logged, too
    "Found .* module.s. in eval mode",  # the frozen encoder
    "Be aware that when using `ckpt_path`, callbacks",  # the interval of last.ckpt may differ
    ".*does not have many workers",  # batches are cut from arrays; images have workers beside a GPU
)


def configure_process() -> None:
    """Set the precision of matrix products, and silence warnings that do not help the user."""
    torch.set_float32_matmul_precision("high")
    # A full disk in the writer thread of TensorBoard: the checkpoints report it.
    threading.excepthook = lambda error: None if error.exc_type is OSError else threading.__excepthook__(error)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def choose_precision(accelerator: str) -> str:
    """The fastest precision that trains well: bf16 where the GPU supports it, or the CPU by AMX."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # missing in the oldest torch
    return "bf16-mixed" if capabilities.get("amx_bf16") else "32-true"


def make_trainer(folder: Path, epochs: int, callbacks: Sequence[Callback], options: dict[str, Any]) -> pl.Trainer:
    """The Trainer of a run in a folder; `options` are passed on, with precision `auto` resolved."""
    if options["precision"] == "auto":
        options = {**options, "precision": choose_precision(options["accelerator"])}
    terminal = sys.stderr.isatty()
    version = f"part_{sum(1 for _ in folder.glob('logs/part_*'))}"  # a resumed run adds a part
    return pl.Trainer(
        **options,
        callbacks=[*callbacks, *([ProgressBar()] if terminal else [])],
        plugins=[AtomicCheckpointIO()],
        max_epochs=epochs,
        logger=[CSVLogger(folder, "logs", version), TensorBoardLogger(folder, "logs", version)],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module gives each process its batches
        enable_model_summary=False,
        enable_progress_bar=terminal,
    )


def fit(trainer: pl.Trainer, task: Any, folder: Path, resumed: bool, *data: Any) -> None:
    """Run Lightning's fit.

    Raises:
        UserError: the folder cannot be written any more, or another process of the training ended.
        KeyboardInterrupt: it was interrupted.
    """
    try:
        trainer.fit(task, *data, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)  # type: ignore[misc]
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # of gloo or NCCL, if another process is gone
        lost = re.search("connection (closed|reset|refused)|broken pipe|process exited", str(error), re.IGNORECASE)
        if trainer.world_size == 1 or not lost:
            raise
        raise UserError(
            f"another process of this training ended ({lost[0]}): see its message, and continue with --resume"
        ) from None
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise UserError(
            f"{folder} cannot be written ({error}): free disk space or fix the permissions, and continue from "
            "last.ckpt with --resume"
        ) from None


def export_best(folder: Path, name: str, select: Any = dict) -> Path:
    """Write best.ckpt as a slim checkpoint for inference, with the tensors that `select` returns of all."""
    header, weights = read_checkpoint(folder / "best.ckpt")
    save_slim(folder / name, header, select(weights))
    return folder / name
