"""Train a model on captioned images, in any layout of docs/data.md.

Example: captioner train --config configs/flickr8k.yaml --data.train captions_train.json --data.train_images train
--data.val captions_val.json --data.val_images val --output runs/mine
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioner.config import DataConfig, ModelConfig, SearchConfig, TrainConfig, TrainerConfig
from captioner.errors import REFUSALS, UserError

GROUPS = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "search": SearchConfig}
# What may differ between a run and its resumption without changing what is computed.
FREE = {"data.feature_cache", "data.feature_memory", "data.workers", "train.checkpoint_minutes", "train.samples"}
WAIT = 10.0  # seconds for another run in the same folder: what read images for a killed one outlives it by a moment
# What Lightning goes on from.
LAST: dict[str, type] = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}
LAST |= {"epoch": int, "global_step": int, "pytorch-lightning_version": str, "captioner": dict}

MAIN = """
config output resume check init_from data.train data.train_images data.val data.val_images model.encoder model.attention
model.cell model.layers train.objective train.epochs train.lr
"""


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("--config", action="config", help="YAML file of options; typed ones override it")
    parser.add_argument("--output", type=str, default="runs/captioner", help="folder of the run")
    parser.add_argument("--resume", type=bool, default=False, help="go on with the run in --output from its last.ckpt")
    parser.add_argument(
        "--check",
        type=bool,
        default=False,
        help="only run a few batches of everything, and say what the training will take",
    )
    parser.add_argument(
        "--init_from", type=str, help="checkpoint whose weights, where they fit, the training begins with"
    )
    for name, config in GROUPS.items():
        parser.add_class_arguments(config, name)
    parser.add_class_arguments(TrainerConfig, "trainer")


def run(options: Any) -> int:
    """Train, or go on training; see the module's docstring."""
    if options.check and options.resume:
        raise UserError("--check looks at a training before it begins: leave out --resume")
    if not options.check:
        with locked(Path(options.output)) as folder:
            return train(options, folder)
    folder = Path(f"{Path(options.output)}.check")  # on the same disk
    try:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        return train(options, folder)
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def rank() -> int:
    """Which of the processes of a training this is, however they were started; 0: the first."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) or 0


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder of a run, kept to this process and to those that it starts; gone again, if the run is refused.

    Raises:
        UserError: another run is writing to it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    if rank() != 0:  # started by the first one, or beside it
        yield folder
        return
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    lock = FileLock(folder / ".lock", timeout=WAIT)
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
        if new and {path.name for path in folder.glob("*")} <= {"config.yaml", ".lock"}:  # nothing was begun
            with suppress(OSError):  # somebody else's by now
                for path in folder.glob("*"):
                    path.unlink()
                for path in new:
                    path.rmdir()
        raise
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()
        lock.release()


def train(options: Any, folder: Path) -> int:
    """Train in a folder; with --check stop soon and say what it would take."""
    settings: dict[str, Any] = {name: asdict(options[name]) for name in (*GROUPS, "trainer")}
    resumed = begin(folder, {**settings, "init_from": options.init_from}, options.resume)

    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.models.captioner import Captioner
    from captioner.models.checkpoint import read_checkpoint, save_slim
    from captioner.models.encoder import Encoder, weights_digest
    from captioner.models.init_from import init_from
    from captioner.training.callbacks import WholeCheckpoints, callbacks
    from captioner.training.datamodule import CaptionData
    from captioner.training.dry_run import Check
    from captioner.training.sanity_checks import Health
    from captioner.training.task import CaptionTask

    quiet()
    torch.set_float32_matmul_precision("high")
    trainer_options = settings["trainer"]
    if trainer_options["precision"] == "auto":
        trainer_options["precision"] = choose_precision(trainer_options["accelerator"])
    critical = options.train.objective == "scst"
    data = CaptionData(options.data, options.model, options.train.seed, by_image=critical, sample=options.check)
    rank_zero_only(data.check_features)()
    pl.seed_everything(options.train.seed, verbose=False)
    encoder = Encoder(options.model) if options.model.trainable_layers else None  # a frozen one has done its work
    model = Captioner(options.model, data.vocabulary, encoder, weights_digest(options.model.encoder))
    version = f"part_{sum(1 for _ in folder.glob('logs/part_*'))}"  # a resumed run adds a part
    parts, every = callbacks(folder, options.train, data.val.examples), trainer_options["check_val_every_n_epoch"]
    parts.append(Health(data))
    check = Check(max(2, trainer_options["accumulate_grad_batches"])) if options.check else None
    if check:
        parts = [*parts, check]
        trainer_options |= {"limit_val_batches": 2, "check_val_every_n_epoch": 1}
    trainer = pl.Trainer(
        **trainer_options,
        callbacks=parts,
        plugins=[WholeCheckpoints()],
        max_epochs=options.train.epochs,
        logger=[CSVLogger(folder, "logs", version), TensorBoardLogger(folder, "logs", version)],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module deals the batches out itself
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    if resumed:  # the number of steps depends on it, before Lightning gives it back
        data.load_state_dict(last_checkpoint(folder).get("CaptionData", {"together": None}))
    batches = len(data.train_sampler(world=trainer.world_size))
    steps = -(-batches // trainer.accumulate_grad_batches) * options.train.epochs
    if trainer.is_global_zero:
        size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(
            f"{len(data.train_set.lengths):,} captions of {len(data.train.examples):,} images, "
            f"{len(data.val.examples):,} images for validation, {len(data.vocabulary):,} words, "
            f"{size:,} trained parameters, {batches:,} batches an epoch on {trainer.strategy.root_device}"
        )
    if options.init_from and not resumed:
        taken = init_from(model, options.init_from)
        if trainer.is_global_zero:
            print(taken)
    rewards = data.rewards(options.train.bleu_weight) if critical else None
    task = CaptionTask(model, options.train, options.search, data.references(), steps, rewards)
    fit(trainer, task, folder, resumed, data)

    if trainer.is_global_zero:
        slim = folder / "captioner.safetensors"
        header, weights = read_checkpoint(folder / "best.ckpt")
        save_slim(slim, header, weights)
        if check:
            Captioner.load(slim)
            epochs = options.train.epochs
            print(check.report(data, trainer.world_size, batches, epochs, epochs // every, folder))
            print(f"checked: two batches and more of everything went well; {options.output} was not touched")
            return 0
        print(
            f"Done: {folder} has best.ckpt, last.ckpt, samples.md, logs/ and {slim.name}, the best model, for use; "
            f"try: captioner predict PHOTO.jpg --checkpoint {slim}"
        )
    return 0


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """What last.ckpt of a run holds.

    Raises:
        UserError: it is damaged.
    """
    from captioner.models.checkpoint import load_pickle

    try:
        found = load_pickle(folder / "last.ckpt", mmap=True)
        for name, kind in LAST.items():
            if not isinstance(found, dict) or not isinstance(found.get(name), kind):
                raise ValueError(f"no {name} in it")
        return found
    except PermissionError as error:
        raise UserError(f"{folder / 'last.ckpt'} cannot be read ({error.strerror}): give the right to") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / 'last.ckpt'} is damaged ({reason}): put back a copy, or begin another run "
            f"with --init-from {folder / 'best.ckpt'}"
        ) from None


def fit(trainer: Any, task: Any, folder: Path, resumed: bool, *data: Any) -> None:
    """Lightning's fit of a run in a folder.

    Raises:
        UserError: the folder cannot be written any more, or one of several processes ended.
        KeyboardInterrupt: it was interrupted.
    """
    try:
        trainer.fit(task, *data, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)
    except SystemExit:  # how Lightning passes on Ctrl-C
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # of gloo or NCCL, in a process that another one left
        lost = re.search("connection (closed|reset|refused)|broken pipe|process exited", str(error), re.IGNORECASE)
        if trainer.world_size == 1 or not lost:
            raise
        raise UserError(
            f"another process of this training ended ({lost[0]}): see what it said, and go on with --resume"
        ) from None
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise UserError(
            f"{folder} cannot be written ({error}): make room or give the right to; --resume goes on from last.ckpt"
        ) from None


def choose_precision(accelerator: str) -> str:
    """The fastest that trains well: bf16 where the GPU, or the CPU by AMX, multiplies matrices in it."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch
    return "bf16-mixed" if capabilities.get("amx_bf16") else "32-true"


def quiet() -> None:
    """Keep to what the person at the terminal can use."""
    # The thread that writes for TensorBoard: a disk that is full is told by who writes the checkpoints.
    threading.excepthook = lambda told: None if told.exc_type is OSError else threading.__excepthook__(told)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # advertisements, devices that are not there
    for message in (
        "Checkpoint directory .* exists and is not empty",  # it has config.yaml, and on resumption the checkpoints
        ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
        "The number of training batches .* is smaller than the logging interval",  # each epoch is logged as well
        "Found .* module.s. in eval mode",  # the frozen encoder, on purpose
        "Be aware that when using `ckpt_path`, callbacks",  # the interval of last.ckpt may differ
        ".*does not have many workers",  # batches are cut from arrays; images have workers beside a GPU
    ):
        warnings.filterwarnings("ignore", message)


def _first_epoch(best: Path) -> bool:
    """Whether this is of a run that was killed before it wrote its first last.ckpt."""
    import torch

    with suppress(Exception):
        return torch.load(best, map_location="cpu", mmap=True, weights_only=True)["epoch"] == 0
    return False


def begin(folder: Path, settings: dict[str, Any], resume: bool) -> bool:
    """Make the folder and its config.yaml; True if there is a run in it to go on with.

    Raises:
        UserError: the folder has a run and `resume` was not asked for, or was with other options.
    """
    import yaml

    last, config = folder / "last.ckpt", folder / "config.yaml"
    if rank() != 0:  # the first one has seen to all this
        return resume and last.exists()
    if os.path.exists(last) and not resume:
        raise UserError(f"{folder} has a run already: --resume goes on with it, another --output begins a new one")
    names = ("captioner.safetensors", "lm.safetensors", "best.ckpt")
    others = [folder / name for name in names if os.path.exists(folder / name)]
    if others and not os.path.exists(last):
        killed_early = [each.name for each in others] == ["best.ckpt"] and _first_epoch(others[0])
        if killed_early and not resume:
            raise UserError(f"{folder} has a run that was killed: --resume begins it anew, another --output a new one")
        if not killed_early:
            raise UserError(
                f"{others[0]} is there, but no last.ckpt to go on from: put back a copy, or choose another --output, "
                f"such as with --init-from {others[0]}"
            )
    if os.path.exists(last):
        try:
            stored = yaml.safe_load(config.read_text(encoding="utf-8"))
            stored = {group: dict(stored[group]) for group in settings if group not in ("trainer", "init_from")}
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{config} is not the config of a run any more ({reason}): put back a copy") from None
        conflicts = [
            f"{group}.{name} was {stored[group].get(name)} and is {value}"
            for group in stored
            for name, value in settings[group].items()
            if f"{group}.{name}" not in FREE and stored[group].get(name, value) != value  # newer options have no past
        ]
        if conflicts:
            raise UserError(
                f"{last} was trained with other options ({'; '.join(conflicts)}): resume with --config {config}"
            )
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump({**settings, "output": str(folder)}, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another --output") from None
    return False
