"""Draws the images of the README: photographs with captions and attention maps.

python docs/screenshots.py gallery docs/gallery.png data/photos/*.jpg
python docs/screenshots.py attention docs/attention.png data/photos/*.jpg --checkpoint runs/mine/captioner.safetensors
"""

import argparse
import math
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import captioner
from captioner.data.images import open_image
from captioner.decoding.constraints import BAD_ENDINGS
from captioner.reports.gallery import map_bytes


def gallery(target: str, photos: list[str], checkpoint: str | None) -> None:
    """The photographs in rows of four, each with its caption."""
    captions = captioner.load(checkpoint).caption(photos)
    rows = math.ceil(len(photos) / 4)
    figure, axes = plt.subplots(rows, 4, figsize=(13, 3.8 * rows), squeeze=False, gridspec_kw={"hspace": 0.1})
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, photo, caption in zip(axes.flat, photos, captions, strict=False):
        axis.imshow(open_image(photo).resize((448, 448)))
        axis.set_title(textwrap.fill(caption, 28), y=-0.05, va="top", fontsize=12)
    figure.savefig(target, dpi=100, bbox_inches="tight")


def attention(target: str, photos: list[str], checkpoint: str | None) -> None:
    """A row per photograph: the photograph, and the attention map of each content word of its caption."""
    captions = captioner.load(checkpoint).caption(photos, attention=True)
    rows = []
    for caption in captions:
        words = enumerate(caption.text.split())
        rows.append([(word, caption.attention[i]) for i, word in words if word not in BAD_ENDINGS])
    columns = 1 + max(map(len, rows))
    figure, axes = plt.subplots(len(photos), columns, figsize=(2.2 * columns, 2.7 * len(photos)), squeeze=False)
    for photo, caption, row, line in zip(photos, captions, rows, axes, strict=True):
        image = open_image(photo).resize((224, 224))
        for axis in line:
            axis.set_axis_off()
        line[0].imshow(image)
        line[0].set_title(textwrap.fill(caption.text, 26), loc="left", fontsize=11)
        for axis, (word, weights) in zip(line[1:], row, strict=False):
            axis.imshow(lit(image, weights))
            axis.set_title(word, fontsize=13)
    figure.savefig(target, dpi=70, bbox_inches="tight")


def lit(image: Image.Image, weights) -> np.ndarray:
    """The image, dark where a word's weights (grid, grid) are low; (H, W, 3) from 0 to 1."""
    grid = math.isqrt(weights.numel())
    small = Image.frombytes("L", (grid, grid), map_bytes(weights)).resize(image.size, Image.Resampling.BICUBIC)
    light = np.asarray(small)[:, :, None] / 255
    return (np.asarray(image) / 255 * (0.2 + 0.8 * light) + light * (0.12, 0.05, -0.08)).clip(0, 1)  # and warm


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", choices=("gallery", "attention"))
    parser.add_argument("target")
    parser.add_argument("sources", nargs="+", help="photographs")
    parser.add_argument("--checkpoint", help="without it, the shipped model")
    options = parser.parse_args()
    draw = {"gallery": gallery, "attention": attention}[options.image]
    draw(options.target, options.sources, options.checkpoint)
