"""The ONNX runner (onnxruntime) against `captioner predict` (torch): a cold start with an image, and further ones.

Whole processes take turns; the time of a further image is the difference between a process with many and with one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ratios import ROOT, load

LIMIT = 0.4


def seconds(*command: object) -> float:
    """Of a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> bool:
    """Print both ratios; whether that of the cold start is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=33, help="in the processes with many")
    options = parser.parse_args()
    photos = sorted((ROOT / "data" / "photos").glob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "exported"
        many = [Path(name) / f"{n}.jpg" for n in range(options.count)]
        for n, copy in enumerate(many):
            shutil.copy(photos[n % len(photos)], copy)
        seconds("captioner", "export", "--to", "onnx", "--output", folder)
        sides = {"onnx": ("captioner.deploy.onnx_runner", folder), "torch": ("captioner", "predict")}
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for side, command in sides.items():
                for images in (photos[:1], many):
                    found.setdefault((side, len(images)), []).append(seconds(*command, *images))
    medians = {key: statistics.median(times) for key, times in found.items()}
    further = {side: (medians[side, len(many)] - medians[side, 1]) / (len(many) - 1) for side in sides}
    ratio = medians["onnx", 1] / medians["torch", 1]
    print(f"each further image: onnx / torch {further['onnx'] / further['torch']:.2f}")
    print(f"one image: onnx {medians['onnx', 1]:.2f} s, torch {medians['torch', 1]:.2f} s; {load()}")
    print(f"ratio {ratio:.2f} (limit <= {LIMIT}): {'ok' if ratio <= LIMIT else 'MISSED'}")
    return ratio <= LIMIT


if __name__ == "__main__":
    sys.exit(not main())
