"""Which device to use, what fits its memory, and the number of worker processes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import psutil

from captioner import progress
from captioner.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

NAMED = ("cpu", "cuda", "mps")  # in messages
TESTED = ("cpu", "cuda")  # kinds of devices that tests are written for


def best_device() -> str:
    """The device that `auto` means: cuda if there is one, else cpu. Any other, such as mps, has to be named."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str | torch.device, option: str = "device") -> str:
    """The name of a device, `auto` resolved; UserError, which names the `option`, if it cannot be used here."""
    import torch

    device = best_device() if name == "auto" else str(name)
    try:
        torch.device(device)
    except RuntimeError:
        near = did_you_mean("cuda" if device == "gpu" else device, ("auto", *NAMED))
        raise UserError(f"{option} is {device}: expected auto, cpu, cuda, cuda:1 … or mps{near}") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch then lists its backends
        raise UserError(f"{option} {device} cannot be used ({reason}): choose auto or cpu") from None
    warn_untested(device.partition(":")[0])
    return device


def resolve_accelerator(accelerator: str, devices: int = 1) -> str:
    """cuda, mps or cpu for ``--trainer.accelerator``; UserError if this machine has fewer than `devices` of them.

    Lightning's own auto and gpu would also choose mps, and its auto a TPU.
    """
    import torch

    device = {"auto": best_device(), "gpu": "cuda"}.get(accelerator, accelerator)
    if device == "cpu":
        check_processes(devices, "trainer.devices")
        if accelerator == "auto" and devices > 1:
            advice = f"--trainer.accelerator cpu trains in {devices} processes on the CPU"
            raise UserError(f"trainer.devices is {devices}: no CUDA device is found here; {advice}")
        return device
    here = torch.cuda.device_count() if device == "cuda" and torch.cuda.is_available() else 0
    here = int(torch.backends.mps.is_available()) if device == "mps" else here
    if here == 0:
        raise UserError(f"trainer.accelerator is {accelerator}: no {device.upper()} device is found here; use cpu")
    if devices > here:
        raise UserError(f"trainer.devices is {devices}: expected 1 to {here}, the {device.upper()} devices here")
    warn_untested(device)
    return device


def check_processes(count: int, option: str) -> None:
    """Raise UserError if `count` processes are more than this machine has CPU cores; two can be tried on any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > max(2, cores):
        here = "1 CPU core is" if cores == 1 else f"{cores} CPU cores are"
        raise UserError(f"{option} is {count}: expected 1 to {max(2, cores)}, for {here} here")


@cache
def warn_untested(kind: str) -> None:
    """Say on standard error, once, that captioner has not been tested on this kind of device."""
    if kind not in TESTED:
        progress.warn(f"captioner: warning: {kind} is untested: compare its results with cpu's")


def free_memory(device: torch.device) -> int:
    """Bytes of the memory of a device that can be used: of the CUDA device, or of this machine."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    import torch

    return torch.cuda.mem_get_info(device)[0]


def held_in_memory(sizes: Sequence[int], limit: float, free: int, processes: int = 1) -> list[bool]:
    """Which tables of features are held in the memory of a device; the others are read from their files.

    Args:
        sizes: bytes of each table; the first ones come first.
        limit: GiB for all tables of a process; -1 for half of its share of the free memory, which leaves the other half
            to the training.
        free: bytes of free memory, see :func:`free_memory`.
        processes: the number that share this memory, each with tables of its own.

    >>> held_in_memory([5 << 30, 2 << 30, 1 << 30], limit=-1, free=16 << 30)
    [True, True, True]
    >>> held_in_memory([5 << 30, 2 << 30, 1 << 30], limit=-1, free=16 << 30, processes=2)
    [False, True, True]
    """
    share = free / processes
    room = share / 2 if limit < 0 else min(limit * 2**30, share)
    held = []
    for size in sizes:
        held.append(size <= room)
        room -= size * held[-1]
    return held


def gib(size: float) -> str:
    """Bytes in GB of 2³⁰, small sizes in MB of 2²⁰.

    >>> gib(2**29), gib(2**20)
    ('0.5 GB', '1 MB')
    """
    return f"{size / 2**30:.1f} GB" if size >= 2**28 else f"{math.ceil(size / 2**20)} MB"


def choose_workers(workers: int, device: str) -> int:
    """`workers`; for -1 no process if the network runs on the CPU too, else one per core, at most 8."""
    if workers < -1:
        raise UserError(f"--workers is {workers}: expected -1 (choose) or more")
    chosen = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    return chosen if workers == -1 else workers


def needed_workers(workers: int, batches: int) -> int:
    """At most one worker process per batch, since each reads whole ones; none for a single batch."""
    return min(workers, batches) if batches > 1 else 0
