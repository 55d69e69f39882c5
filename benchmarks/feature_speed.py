"""Feature extraction from JPEG files against the bare ResNet forward, on the CPU.

Ours is captioner.training.split.extract_features: read, decode, resize, normalise, encode, round to fp16. Bare is
encoder.resnet on the same images as normalised float tensors made beforehand, in the same batches. The limit is on
224 × 224 files, which are decoded but not resized to another size; 500 × 375 files are measured for information.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from ratios import median, rounds_argument, spread, take_turns, verdict

from captioner.config import ModelConfig
from captioner.data.dataset import read_images
from captioner.devices import choose_workers
from captioner.models.encoder import Encoder
from captioner.training.split import extract_features

SIDE, BATCH, NUMBER = 224, 32, 64
LIMIT = 0.9


def write_images(folder: Path, width: int, height: int) -> list[Path]:
    """NUMBER JPEGs with about the detail, and bytes, of photographs: noise at several scales."""
    random = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{i}.jpg" for i in range(NUMBER)]
    for path in paths:
        pixels = np.zeros((height, width, 3))
        for cells, contrast in ((4, 60), (16, 30), (64, 15), (width, 6)):
            noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1) * contrast
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def main() -> bool:
    """Print the ratios; whether that of 224 × 224 files is within the limit."""
    rounds = rounds_argument(__doc__, 10).parse_args().rounds
    encoder = Encoder(ModelConfig(image_size=SIDE, second_size=0))  # one look
    workers = choose_workers(-1, "cpu")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        small = write_images(Path(name, "small"), SIDE, SIDE)
        large = write_images(Path(name, "large"), 500, 375)
        tensors = [
            ((images.float() - encoder.mean) / encoder.std).contiguous(memory_format=torch.channels_last)
            for images, _ in read_images(small, SIDE, BATCH)
        ]

        def ours(paths: list[Path]) -> np.ndarray:
            return np.concatenate(list(extract_features(encoder, paths, SIDE, BATCH, workers, False)))

        def bare() -> torch.Tensor:
            return torch.cat([encoder.resnet(x).mean(dim=(2, 3)) for x in tensors])

        np.testing.assert_allclose(ours(small), F.normalize(bare(), dim=1), atol=1e-3)
        times = take_turns({"bare": bare, "small": lambda: ours(small), "large": lambda: ours(large)}, rounds)
    for side, values in times.items():
        print(f"{side:6} {NUMBER / median(values):6.1f} images/s")
    print(f"for information, 500 x 375 files / bare: {spread(times['bare'], times['large'])}")
    return verdict("224 x 224 files / bare, images/s", times["bare"], times["small"], ">=", LIMIT)


if __name__ == "__main__":
    sys.exit(not main())
