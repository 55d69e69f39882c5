"""The accelerator of this machine and the number of processes that read images."""

from __future__ import annotations

import os

from captioner.errors import UserError


def best_device() -> str:
    """The accelerator of this machine, for work outside a Lightning trainer."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def choose_workers(workers: int, device: str) -> int:
    """`workers`, or for -1: none where the CPU does the network's work too, else one a core, up to 8."""
    if workers < -1:
        raise UserError(f"--workers is {workers}: expected -1 (choose) or more")
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)
