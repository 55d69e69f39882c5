"""A training run: its folder with a lock, config.yaml and checkpoints, and the Lightning Trainer."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from captioner.config import TrainerConfig
from captioner.devices import resolve_accelerator
from captioner.errors import REFUSALS, UserError, counted, one_line
from captioner.files import write_text
from captioner.models.captioner import save_slim
from captioner.models.checkpoint import load_pickle, read_checkpoint
from captioner.training.callbacks import AtomicCheckpointIO, ProgressBar

LOCK_TIMEOUT = 10.0  # seconds; the worker processes of a killed run end a moment later
# Options that a resumed run may change, since they do not change the results.
FREE_OPTIONS = {"data.feature_cache", "data.feature_memory", "data.workers"}
FREE_OPTIONS |= {"train.checkpoint_minutes", "train.samples", "train.epochs"}  # the epochs are checked by themselves
# The entries of last.ckpt that Lightning resumes from.
LAST_CHECKPOINT: dict[str, type] = {"state_dict": dict, "loops": dict, "callbacks": dict, "captioner": dict}
LAST_CHECKPOINT |= {"optimizer_states": list, "lr_schedulers": list, "pytorch-lightning_version": str}
LAST_CHECKPOINT |= {"epoch": int, "global_step": int}
IRRELEVANT_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # it has config.yaml, and in a resumed run the checkpoints
    ".*isinstance.treespec, LeafSpec.* is deprecated",  # in Lightning's own code
    "The number of training batches .* is smaller than the logging interval",  # each epoch is logged, too
    "Found .* module.s. in eval mode",  # the frozen encoder
    "Be aware that when using `ckpt_path`, callbacks",  # the interval of last.ckpt may differ
    ".*does not have many workers",  # batches are cut from arrays; images have workers beside a GPU
)


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[Path]:
    """Create the folder, and lock it against other runs; a new folder is removed again if the run is refused.

    After Ctrl-C the message of KeyboardInterrupt says how `command`, train or pretrain, continues.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # the first process has the lock
        yield folder
        return
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    lock = FileLock(folder / ".lock", timeout=LOCK_TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another run is writing to {folder}: wait for it or name another --output") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another --output") from None
    try:
        yield folder
    except UserError:
        if new and {path.name for path in folder.glob("*")} <= {"config.yaml", ".lock"}:
            with suppress(OSError):  # another program may have written to it meanwhile
                for path in folder.glob("*"):
                    path.unlink()
                for path in new:
                    path.rmdir()
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_resume(folder, command)) from None
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()
        lock.release()


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder for a dry run, which the first process removes before and after it."""
    remove = rank_zero_only(shutil.rmtree)
    remove(folder, ignore_errors=True)  # of a killed dry run
    try:
        yield folder
    finally:
        remove(folder, ignore_errors=True)


def find_run(folder: Path, settings: dict[str, Any], resume: bool) -> bool:
    """Whether there is a run to resume; UserError if it cannot be resumed with these settings, or would be overwritten.

    `settings` are the values of the options, by group.
    """
    last, config = folder / "last.ckpt", folder / "config.yaml"
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # the first process has checked
        return resume and last.exists()
    if os.path.exists(last):
        if not resume:
            raise UserError(f"{folder} has a run already: --resume continues it, another --output starts a new one")
        stored = _check_settings(config, settings)
        _check_epochs(folder, stored, settings["train"]["epochs"])
        return True
    _check_no_models(folder, resume)
    if resume and not config.exists():
        print(f"{folder} has no run to resume: a new one begins")
    return False


@rank_zero_only
def write_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write config.yaml of a new run."""
    write_text(folder / "config.yaml", yaml.safe_dump({**settings, "output": str(folder)}, sort_keys=False))


def _check_settings(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Compare the settings with those in the config.yaml of the run, which are returned.

    Of the trainer's options all may differ but accumulate_grad_batches, which sets the number of steps.
    """
    groups = list(settings)
    try:
        stored = yaml.safe_load(config.read_text(encoding="utf-8"))
        stored |= {group: dict(stored[group]) for group in groups}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{config} is not the config of a run ({one_line(error)}): put back a copy") from None
    conflicts = [
        f"{group}.{name} was {stored[group].get(name)} and is {value}"
        for group in groups
        for name, value in settings[group].items()
        if f"{group}.{name}" not in FREE_OPTIONS and (group != "trainer" or name == "accumulate_grad_batches")
        if stored[group].get(name, value) != value  # older runs lack options
    ]
    if conflicts:
        raise UserError(
            f"the run in {config.parent} has other options ({'; '.join(conflicts)}): resume it with --config {config}"
        )
    return stored


def _check_epochs(folder: Path, stored: dict[str, Any], epochs: int) -> None:
    """Check that a run has not trained for more epochs than these, and write another number to its config.yaml."""
    begun = read_last_checkpoint(folder)["epoch"] + 1
    if epochs < begun:
        raise UserError(f"train.epochs is {epochs}: expected {begun} or more, as many as {folder} has begun")
    if stored["train"].get("epochs") != epochs:
        stored["train"]["epochs"] = epochs
        write_text(folder / "config.yaml", yaml.safe_dump(stored, sort_keys=False))


def _check_no_models(folder: Path, resume: bool) -> None:
    """Refuse to overwrite the models of a run without last.ckpt, unless it was killed in its first epoch."""
    names = ("captioner.safetensors", "lm.safetensors", "best.ckpt")
    models = [folder / name for name in names if os.path.exists(folder / name)]
    if not models:
        return
    first_epoch = False
    if models == [folder / "best.ckpt"]:
        with suppress(OSError, ValueError, AttributeError):  # of a file that is no checkpoint
            first_epoch = load_pickle(models[0], mmap=True).get("epoch") == 0
    if not first_epoch:
        raise UserError(
            f"{folder} has {models[0].name}, but no last.ckpt to resume from: put back a copy, or train into another "
            f"--output, for example with --init-from {models[0]}"
        )
    if not resume:
        raise UserError(f"{folder} has a run that was killed: --resume starts it again, another --output a new one")


def read_last_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of last.ckpt of a run, with the entries that Lightning resumes from."""
    path = folder / "last.ckpt"
    try:
        checkpoint = load_pickle(path, mmap=True)
        for name, kind in LAST_CHECKPOINT.items():
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(name), kind):
                raise ValueError(f"it has no {name}")
        return checkpoint
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): fix its permissions") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}): put back a copy, or start another run with --init-from "
            f"{folder / 'best.ckpt'}"
        ) from None


def how_to_resume(folder: Path, command: str) -> str:
    """The command that continues an interrupted run, and from where."""
    if not (folder / "config.yaml").exists():
        return "nothing is saved"
    where = "from the beginning"
    with suppress(UserError):  # there is no last.ckpt
        last = read_last_checkpoint(folder)
        batches = last["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done, epoch = batches["current"]["completed"], last["epoch"] + 1
        where = f"after epoch {epoch}" if batches["is_last_batch"] else f"after batch {done} of epoch {epoch}"
    return (
        f"continue {where}: {shlex.join(['captioner', command, '--config', str(folder / 'config.yaml'), '--resume'])}"
    )


def configure_process() -> None:
    """Set the precision of matrix products, and silence warnings that do not help the user."""
    torch.set_float32_matmul_precision("high")
    # A full disk in the writer thread of TensorBoard: the checkpoints report it.
    threading.excepthook = lambda error: None if error.exc_type is OSError else threading.__excepthook__(error)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def resolve_trainer(config: TrainerConfig) -> dict[str, Any]:
    """The options of Lightning's Trainer, with `auto` resolved; UserError if this machine lacks the devices."""
    device = resolve_accelerator(config.accelerator, config.devices)
    precision = choose_precision(device) if config.precision == "auto" else config.precision
    if (device, precision) == ("cpu", "16-mixed"):
        raise UserError("trainer.precision is 16-mixed: expected bf16-mixed or 32-true on a CPU")
    processes = config.devices * config.num_nodes
    launched = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS", "1")
    if int(launched) not in (1, processes):  # with one device Lightning would train a model in each of them
        count = f"trainer.devices × trainer.num_nodes is {processes}"
        raise UserError(f"{count}, but torchrun or srun has started {launched} processes: make both numbers the same")
    return {**asdict(config), "accelerator": device, "precision": precision}


def choose_precision(device: str) -> str:
    """The fastest precision that trains well: bf16 where a GPU computes in it, or a CPU by AMX or AVX-512 BF16."""
    if device == "cuda":  # by emulation, as on a T4, bf16 is slower than fp16
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # missing in the oldest torch
    fast = device == "cpu" and (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return "bf16-mixed" if fast else "32-true"


def describe_trainer(options: dict[str, Any], batch_size: int) -> str:
    """``training on 2 × cuda in bf16-mixed: batches of 256 captions, 128 on each``."""
    processes = options["devices"] * options["num_nodes"]
    batches = f"in {options['precision']}: batches of {counted(batch_size, 'caption')}"
    if options["accumulate_grad_batches"] > 1:
        batches += f", {options['accumulate_grad_batches']} a step"
    if processes == 1:
        return f"training on {options['accelerator']} {batches}"
    return f"training on {processes} × {options['accelerator']} {batches}, {-(-batch_size // processes)} on each"


def make_trainer(folder: Path, epochs: int, callbacks: Sequence[Callback], options: dict[str, Any]) -> pl.Trainer:
    """The Trainer of a run in a folder; `options` are those of :func:`resolve_trainer`."""
    terminal = sys.stderr.isatty()
    version = f"part_{sum(1 for _ in folder.glob('logs/part_*'))}"  # a resumed run adds a part
    try:
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
    except (MisconfigurationException, ValueError) as error:  # a strategy, or the processes of torchrun or SLURM
        raise UserError(f"Lightning refuses the --trainer options: {one_line(error)}") from None


def fit(trainer: pl.Trainer, task: Any, folder: Path, resumed: bool, *data: Any) -> None:
    """Lightning's fit, with one line for a full disk and for a lost process, and KeyboardInterrupt after Ctrl-C."""
    try:
        trainer.fit(task, *data, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)  # type: ignore[misc]
    except SystemExit:  # Lightning raises it after Ctrl-C
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
