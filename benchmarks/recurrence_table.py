"""The table of docs/recurrence.md: the scores of each row's runs at their best epoch, and the time of a training step.

    python benchmarks/recurrence_table.py runs/recurrence/*

A run is a folder ROW-SEED that captioner train has finished. Scores are the mean over the seeds ± their standard
deviation, where there are two or more. The speed is captions per second of processor time of a training step, on
made-up captions of 11 ± 3 words, as a multiple of the first row's, the rows taking turns.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ratios import caption_lengths, rounds_argument, take_turns

from captioner.data.layout import Layout
from captioner.models.captioner import Captioner

CAPTIONS = 256
SCORES = ("val_cider", "val_bleu4", "val_distinct", "val_loss")


def best_epoch(folder: Path) -> list[float]:
    """The scores of the epoch with the best val_cider."""
    files = sorted(folder.glob("logs/part_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.open()) if row.get("val_cider")]
    best = max(rows, key=lambda row: float(row["val_cider"]))
    return [float(best[name]) for name in SCORES]


class TrainingStep:
    """Forward, backward and AdamW on one batch, in bf16 like the runs."""

    def __init__(self, model: Captioner) -> None:
        random = np.random.default_rng(0)
        lengths = caption_lengths(CAPTIONS, random)
        self.decoder = model.decoder.train()
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), fused=True)
        features, image_of = torch.randn(CAPTIONS, self.decoder.project.in_features), torch.arange(CAPTIONS)
        words = torch.from_numpy(random.integers(4, len(model.vocabulary), (CAPTIONS, lengths.max())))
        layout = Layout.of(np.arange(lengths.max()) < lengths[:, None])
        self.batch, self.targets = (features, words, image_of, layout), words.flatten()[layout.targets]

    def __call__(self) -> None:
        """One step."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.decoder(*self.batch)
        F.cross_entropy(logits.float(), self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    """Print the table."""
    parser = rounds_argument(__doc__, 20)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    rows: dict[str, list[Path]] = {}
    for folder in options.runs:
        rows.setdefault(folder.name.rpartition("-")[0], []).append(folder)
    models = {row: Captioner.load(folders[0] / "captioner.safetensors") for row, folders in rows.items()}
    steps: dict[str, Any] = {row: TrainingStep(model) for row, model in models.items()}
    times = take_turns({row: partial(step) for row, step in steps.items()}, options.rounds)
    first = np.array(next(iter(times.values())))[:, 1]
    print("| row | seeds | CIDEr | BLEU-4 | distinct, % | loss, nats a word | decoder's parameters | captions/s |")
    print("|---|---|---|---|---|---|---|---|")
    for row, folders in rows.items():
        scores = np.array([best_epoch(folder) for folder in folders])
        cells = [f"{mean:.{digits}f}" for mean, digits in zip(scores.mean(axis=0), (1, 1, 1, 2), strict=True)]
        if len(folders) > 1:
            spread = scores.std(axis=0, ddof=1)
            cells = [f"{cell} ± {sd:.{digits}f}" for cell, sd, digits in zip(cells, spread, (1, 1, 1, 2), strict=True)]
        size = sum(parameter.numel() for parameter in models[row].decoder.parameters())
        speed = np.median(first / np.array(times[row])[:, 1])
        print(f"| {row} | {len(folders)} | {' | '.join(cells)} | {size / 1e6:.2f} M | {speed:.2f} |", flush=True)


if __name__ == "__main__":
    main()
