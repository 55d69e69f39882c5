"""Helpers of the benchmarks: ratios of two sides that take turns, and captions of realistic lengths."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the captioner beside this folder, wherever the script is started


def rounds_argument(about: str | None, default: int) -> argparse.ArgumentParser:
    """A parser with --rounds."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=default, help="times that the sides take turns")
    return parser


def seconds(work: Callable[[], object]) -> np.ndarray:
    """(2,) wall-clock and processor time of one call in seconds, child processes included."""
    began = clocks()
    work()
    return clocks() - began


def clocks() -> np.ndarray:
    """(2,) seconds on the wall clock, and of processor time."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def take_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[np.ndarray]]:
    """Seconds of each side in each round; one unmeasured call of each comes first.

    Every other round goes through the sides backwards, so that none of them always follows the same one.
    """
    for work in sides.values():
        work()
    times: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
            times[name].append(seconds(sides[name]))
    return times


def median(times: Sequence[np.ndarray]) -> float:
    """Median seconds by the clock."""
    return float(np.median(times, axis=0)[0])


def spread(over: Sequence[np.ndarray], under: Sequence[np.ndarray]) -> str:
    """Median and quartiles of the rounds' ratios, and the median for processor time."""
    low, middle, high = np.quantile(np.divide(over, under)[:, 0], [0.25, 0.5, 0.75])
    processor = np.median(np.divide(over, under)[:, 1])
    return (
        f"median {middle:.3g}, half of {len(over)} rounds in {low:.3g} .. {high:.3g}; of processor time {processor:.3g}"
    )


def load() -> str:
    """The load of the machine: other work makes the sides slower, and the spread wider."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def verdict(name: str, over: Sequence[np.ndarray], under: Sequence[np.ndarray], sign: str, limit: float) -> bool:
    """Print the median of the rounds' over / under and its limit; return whether the limit holds."""
    ratio = np.median(np.divide(over, under)[:, 0])
    holds = bool(ratio >= limit if sign == ">=" else ratio <= limit)
    print(f"{name}: {spread(over, under)}; {load()}")
    print(f"ratio {ratio:.3g} (limit {sign} {limit:g}): {'ok' if holds else 'MISSED'}", flush=True)
    return holds


def caption_lengths(number: int, random: np.random.Generator) -> np.ndarray:
    """(number,) caption lengths in words, as in real captions: 11 ± 3, from 4 to 25."""
    return random.normal(11, 3, number).round().clip(4, 25).astype(int)
