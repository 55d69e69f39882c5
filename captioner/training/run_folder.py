"""The folder of a run: its lock, its config.yaml, and whether it has a run that can be resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from captioner.errors import UserError, one_line
from captioner.files import write_text

LOCK_TIMEOUT = 10.0  # seconds; the worker processes of a killed run outlive it by a moment
# Options that a resumed run may change, since they do not change what is computed.
FREE_OPTIONS = {"data.feature_cache", "data.feature_memory", "data.workers"}
FREE_OPTIONS |= {"train.checkpoint_minutes", "train.samples"}
FINAL_MODELS = ("captioner.safetensors", "lm.safetensors", "best.ckpt")
# What Lightning needs of last.ckpt to resume.
LAST_CHECKPOINT: dict[str, type] = {"state_dict": dict, "loops": dict, "callbacks": dict, "captioner": dict}
LAST_CHECKPOINT |= {"optimizer_states": list, "lr_schedulers": list, "pytorch-lightning_version": str}
LAST_CHECKPOINT |= {"epoch": int, "global_step": int}


def process_rank() -> int:
    """The rank of this process in a distributed training, however it was started; 0 is the first process."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) or 0


@contextmanager
def lock_folder(folder: Path) -> Iterator[Path]:
    """Create the folder, and lock it against other runs; a new folder is removed again if the run is refused.

    The other processes of a distributed training rely on the lock of the first one.

    Raises:
        UserError: another run has the lock, or the folder is not writable.
    """
    from filelock import FileLock, Timeout

    if process_rank() != 0:
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
            with suppress(OSError):  # another program may have written there meanwhile
                for path in folder.glob("*"):
                    path.unlink()
                for path in new:
                    path.rmdir()
        raise
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()
        lock.release()


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder for a dry run, which the first process removes before and after it."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    remove = rank_zero_only(shutil.rmtree)
    remove(folder, ignore_errors=True)  # of a killed dry run
    try:
        yield folder
    finally:
        remove(folder, ignore_errors=True)


def prepare_run(folder: Path, settings: dict[str, Any], resume: bool) -> bool:
    """Write config.yaml of a new run, or check that the run in the folder can be resumed with these settings.

    Args:
        folder: of the run.
        settings: the values of the options, by group.
        resume: whether to continue an existing run.

    Returns:
        Whether there is a run to resume.

    Raises:
        UserError: there is a run but not `resume`, it had other options, or its last.ckpt is missing.
    """
    last, config = folder / "last.ckpt", folder / "config.yaml"
    if process_rank() != 0:  # the first process has checked
        return resume and last.exists()
    if os.path.exists(last):
        if not resume:
            raise UserError(f"{folder} has a run already: --resume continues it, another --output starts a new one")
        _check_settings(config, settings)
        return True
    _check_no_models(folder, resume)
    write_text(config, yaml.safe_dump({**settings, "output": str(folder)}, sort_keys=False))
    return False


def _check_settings(config: Path, settings: dict[str, Any]) -> None:
    """Compare the settings with those in the config.yaml of the run; trainer and init_from may differ."""
    groups = [group for group in settings if group not in ("trainer", "init_from")]
    try:
        stored = yaml.safe_load(config.read_text(encoding="utf-8"))
        stored = {group: dict(stored[group]) for group in groups}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{config} is not the config of a run ({one_line(error)}): put back a copy") from None
    conflicts = [
        f"{group}.{name} was {stored[group].get(name)} and is {value}"
        for group in groups
        for name, value in settings[group].items()
        if f"{group}.{name}" not in FREE_OPTIONS and stored[group].get(name, value) != value  # older runs lack options
    ]
    if conflicts:
        raise UserError(
            f"the run in {config.parent} has other options ({'; '.join(conflicts)}): resume it with --config {config}"
        )


def _check_no_models(folder: Path, resume: bool) -> None:
    """Refuse to overwrite the models of a run without last.ckpt, unless it was killed in its first epoch."""
    models = [folder / name for name in FINAL_MODELS if os.path.exists(folder / name)]
    if not models:
        return
    if not ([each.name for each in models] == ["best.ckpt"] and _of_first_epoch(models[0])):
        raise UserError(
            f"{folder} has {models[0].name}, but no last.ckpt to resume from: put back a copy, or train into another "
            f"--output, for example with --init-from {models[0]}"
        )
    if not resume:
        raise UserError(f"{folder} has a run that was killed: --resume starts it again, another --output a new one")


def _of_first_epoch(best: Path) -> bool:
    from captioner.models.checkpoint import load_pickle

    try:
        checkpoint = load_pickle(best, mmap=True)
    except (OSError, ValueError):
        return False
    return isinstance(checkpoint, dict) and checkpoint.get("epoch") == 0


def read_last_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of last.ckpt of a run.

    Raises:
        UserError: it is damaged.
    """
    from captioner.models.checkpoint import load_pickle

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
