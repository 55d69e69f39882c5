"""The table of docs/language_model.md: captioners on few and many images, with and without a language model first.

    python benchmarks/few_pairs.py SEEDS --data.train captions_train.json --data.train_images images/train \
        --data.val captions_val.json --data.val_images images/val

Runs what is missing under runs/few, seed by seed; a stopped run starts again; 0 seeds only prints. Each row has
the last validation of the existing runs: mean, and standard deviation where there are several.
"""

from __future__ import annotations

import csv
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

FOLDER, LM = Path("runs/few"), Path("runs/lm/lm.safetensors")
FRACTIONS = {
    "10": "--data.fraction 0.1 --data.batch_size 64 --train.epochs 15 --trainer.check_val_every_n_epoch 5",
    "30": "--data.fraction 0.3 --data.batch_size 128 --train.epochs 10 --trainer.check_val_every_n_epoch 5",
    "100": "--data.batch_size 256 --train.epochs 6 --trainer.check_val_every_n_epoch 3",
}
BEGINNINGS = {"none": "", "init": f"--init-from {LM} --data.vocabulary count", "both": f"--init-from {LM}"}
NAMES = {"none": "random", "init": "language model", "both": "language model and its vocabulary"}
COLUMNS = ("val_cider", "val_bleu4", "val_rouge", "val_distinct")


def run(name: str, options: str, data: list[str]) -> None:
    """One captioner, unless it exists."""
    out = FOLDER / name
    if not (out / "captioner.safetensors").exists():
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "captioner", "train", "--config", "few_pairs"]
        subprocess.run([*command, *options.split(), *data, "--output", str(out)], check=True)


def scores(fraction: str, beginning: str) -> list[dict[str, float]]:
    """The last validation of each seed's run, where it is complete."""
    found = []
    for out in sorted(FOLDER.glob(f"{fraction}-{beginning}-*")):
        if (out / "captioner.safetensors").exists():
            rows = csv.DictReader((out / "logs" / "part_0" / "metrics.csv").read_text().splitlines())
            last = [row for row in rows if row["val_cider"]][-1]
            values = {name: float(last[name]) for name in COLUMNS}
            found.append({**values, "perplexity": math.exp(float(last["val_loss"]))})
    return found


def main() -> None:
    """Run, then print."""
    seeds, data = int(sys.argv[1]), sys.argv[2:]
    for seed in range(seeds):
        for fraction, options in FRACTIONS.items():
            for beginning, more in BEGINNINGS.items():
                if (fraction, beginning) != ("100", "both"):  # the same vocabulary: the same run
                    run(f"{fraction}-{beginning}-{seed}", f"{options} {more} --train.seed {seed}", data)
    print("| images | initial weights | seeds | CIDEr-D | BLEU-4 | ROUGE-L | distinct captions, % | perplexity |")
    print("|---|---|---|---|---|---|---|---|")
    for fraction in FRACTIONS:
        for beginning, name in NAMES.items():
            found = scores(fraction, beginning)
            cells = []
            for column in (*COLUMNS, "perplexity") if found else ():
                values = [one[column] for one in found]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            if found:
                print(f"| {fraction} % | {name} | {len(found)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
