"""Fine-tuning the last stage of ResNet-50 on a CPU: an epoch on cached maps against one that decodes every image.

Both are whole runs of ``captioner train`` on the same JPEGs of 500 × 375 pixels, without and with ``--data.augment``.
Only their training epochs are timed, since the maps are computed once, before the first.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import feature_speed
import numpy as np
import pytorch_lightning as pl
from ratios import clocks, median, rounds_argument, verdict

from captioner.__main__ import main as captioner
from captioner.training import callbacks

IMAGES, LIMIT = 64, 3.0


class EpochTimes(pl.Callback):
    """Seconds of each epoch of training."""

    def __init__(self) -> None:
        self.times: list[np.ndarray] = []

    def on_train_epoch_start(self, trainer: Any, task: Any) -> None:
        self.began = clocks()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            self.times.append(clocks() - self.began)


def write_data(folder: Path) -> None:
    """Images with five captions each for training, and one image for validation."""
    paths = feature_speed.write_images(folder / "images", 500, 375)[:IMAGES]
    words = np.random.default_rng(0).integers(50, size=(len(paths), 5, 10))
    for split, used in (("train", len(paths)), ("val", 1)):
        images = [{"id": i, "file_name": path.name} for i, path in enumerate(paths[:used])]
        captions = [
            {"image_id": i, "caption": " ".join(f"w{word}" for word in words[i, n])}
            for i in range(used)
            for n in range(5)
        ]
        (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": captions}))


def main() -> bool:
    """Print the ratio; whether it is within the limit."""
    rounds = rounds_argument(__doc__, 3).parse_args().rounds
    real_callbacks, sides = callbacks.make_callbacks, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        options = {
            "data.train": folder / "train.json",
            "data.train_images": folder / "images",
            "data.val": folder / "val.json",
            "data.val_images": folder / "images",
            "data.min_count": 1,
            "data.batch_size": 80,
            "data.feature_cache": folder / "features",
            "model.trainable_layers": 1,
            "train.epochs": rounds + 1,
            "train.patience": 0,
            "trainer.accelerator": "cpu",
        }
        for side, augment in (("decoded", "--data.augment"), ("cached", "--data.no_augment")):
            sides[side] = times = EpochTimes()
            with (
                patch.object(callbacks, "make_callbacks", lambda *a, times=times: [*real_callbacks(*a), times]),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()) as complaints,
            ):
                given = [f"--{option}={value}" for option, value in options.items()]
                code = captioner(["train", *given, augment, f"--output={folder / side}"])
            if code:
                raise SystemExit(complaints.getvalue())
    decoded, cached = (side.times[1:] for side in sides.values())
    for side, times in (("decoded", decoded), ("cached", cached)):
        print(f"{side:8} {IMAGES / median(times):6.2f} images/s")
    return verdict("decoding / cached maps, seconds of an epoch", decoded, cached, ">=", LIMIT)


if __name__ == "__main__":
    sys.exit(not main())
