"""Draws the pictures of the README: photographs with their captions, and the curve of a training run.

python docs/pictures.py gallery docs/gallery.png data/photos/*.jpg
python docs/pictures.py curve docs/training.png runs/flickr8k
"""

import csv
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import captioner
from captioner.images import open_image


def gallery(target: str, *photos: str) -> None:
    """The photographs in a row, each with the caption of the shipped model."""
    captions = captioner.load().caption(list(photos))
    figure, axes = plt.subplots(1, len(photos), figsize=(3.2 * len(photos), 4), squeeze=False)
    for axis, photo, caption in zip(axes[0], photos, captions, strict=True):
        axis.imshow(open_image(photo).resize((448, 448)))
        axis.set_axis_off()
        axis.set_title(textwrap.fill(caption, 30), y=-0.07, va="top", fontsize=12)
    figure.savefig(target, dpi=100, bbox_inches="tight")


def curve(target: str, run: str) -> None:
    """Loss, validation CIDEr-D and gradient norm of a run, from the metrics.csv files of its parts."""
    rows = [row for part in sorted(Path(run).glob("logs/part_*/metrics.csv")) for row in csv.DictReader(part.open())]

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in points], [value for _, value in points]

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.plot(*series("train_loss"), lw=0.8, alpha=0.7, label="training, label-smoothed, with dropout")
    left.plot(*series("val_loss"), "o-", label="validation")
    left.set(xlabel="step", ylabel="cross-entropy, nats a word", title="loss")
    left.legend()
    middle.plot(*series("val_cider"), "o-", color="tab:green", label="CIDEr-D")
    middle.set(xlabel="step", ylabel="val_cider", title="validation, decoded with the beam")
    middle.grid(alpha=0.3)
    right.plot(*series("grad_norm"), lw=0.8, color="tab:red")
    right.set(xlabel="step", ylabel="global norm before clipping", title="gradient norm", yscale="log")
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    {"gallery": gallery, "curve": curve}[sys.argv[1]](*sys.argv[2:])
