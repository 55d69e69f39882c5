"""What the benchmarks share: ratios of two sides that take turns, and captions of realistic lengths."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the captioner beside this folder, wherever the script is started


def rounds_argument(about: str | None, default: int) -> argparse.ArgumentParser:
    """A parser that has --rounds."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=default, help="times that the sides take turns")
    return parser


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; one unmeasured call of each comes first.

    Every other round goes through the sides backwards, so that none of them always follows the same one.
    """
    for work in sides.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
            times[name].append(seconds(sides[name]))
    return times


def quotients(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(ratios: Sequence[float]) -> str:
    """Median, quartiles and number of ratios."""
    low, high = np.quantile(ratios, [0.25, 0.75])
    return f"median {statistics.median(ratios):.3g}, half of {len(ratios)} rounds in {low:.3g} .. {high:.3g}"


def load() -> str:
    """How busy the machine is, for the reader: others' work makes the sides slower, and the spread wider."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def verdict(name: str, ratios: Sequence[float], sign: str, limit: float) -> bool:
    """Print the line of a limit; whether it holds."""
    ratio = statistics.median(ratios)
    holds = ratio >= limit if sign == ">=" else ratio <= limit
    print(f"{name}: {spread(ratios)}; {load()}")
    print(f"ratio {ratio:.3g} (limit {sign} {limit:g}): {'ok' if holds else 'MISSED'}", flush=True)
    return holds


def caption_lengths(number: int, random: np.random.Generator) -> np.ndarray:
    """(number,) words in each of so many captions, as people write them: 11 ± 3, from 4 to 25."""
    return random.normal(11, 3, number).round().clip(4, 25).astype(int)
