"""The accelerator of this machine, and the number of worker processes."""

from __future__ import annotations

import os

from captioner.errors import UserError


def best_device() -> str:
    """The accelerator to use outside a Lightning trainer: cuda, mps or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def choose_workers(workers: int, device: str) -> int:
    """`workers`; for -1 no process if the network runs on the CPU too, else one per core, at most 8."""
    if workers < -1:
        raise UserError(f"--workers is {workers}: expected -1 (choose) or more")
    chosen = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    return chosen if workers == -1 else workers
