"""``captioner predict --engine ddp`` and ``ray`` against ``local`` on the same images, whole commands, as ratios.

Each engine is a fresh process that writes a folder of parts; start-up is part of its time, so the ratios are
meaningful only with many images (--images 100000). The parts must be the same bytes. One thread per process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ratios import ROOT, load

from captioner.datasets.synthetic import draw, scenes

SIDES = [("local", 1), ("ddp", 1), ("ddp", 2), ("ray", 1), ("ray", 2)]


def images(folder: Path, count: int) -> None:
    """Draw `count` images of 64 pixels."""
    folder.mkdir()
    single, rng = scenes(False, 0)[0], random.Random(0)
    for number in range(count):
        draw(rng.choice(single), 64, rng).save(folder / f"{number:06}.png", compress_level=1)


def tiny(file: Path) -> None:
    """An untrained model with a ResNet-18 of random weights, which are in the file."""
    import torch

    from captioner.config import ModelConfig
    from captioner.data.vocabulary import Vocabulary
    from captioner.models.captioner import Captioner
    from captioner.models.encoder import Encoder

    torch.manual_seed(0)
    config = ModelConfig("resnet18", second_size=0, trainable_layers=1, image_size=64, hidden_size=64)
    words, encoder = Vocabulary([f"w{i}" for i in range(200)]), Encoder(config, weights=False)
    for layer in encoder.modules():
        if hasattr(layer, "reset_parameters"):  # uninitialised
            layer.reset_parameters()
    Captioner(config, words, encoder, "random").save(file)


def main() -> None:
    """Print images per second of each engine, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--checkpoint", help="default: a tiny model with random weights")
    parser.add_argument("--beam", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["local", "ddp", "ray"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder / "images", options.images)
        checkpoint = options.checkpoint or folder / "tiny.safetensors"
        if not options.checkpoint:
            tiny(folder / "tiny.safetensors")
        rates, digests = {}, {}
        for engine, devices in [side for side in SIDES if side[0] in options.engines]:
            parts = folder / f"{engine}{devices}"
            command = [sys.executable, "-m", "captioner", "predict", folder / "images", "--checkpoint", checkpoint]
            command += ["--device", "cpu", "--beam", options.beam, "--engine", engine, "--devices", devices]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            began = time.perf_counter()
            subprocess.run([str(w) for w in [*command, "--output", f"{parts}/"]], check=True, env=environment)
            rates[engine, devices] = options.images / (time.perf_counter() - began)
            digest = hashlib.sha256()
            for file in sorted(parts.glob("part-*.jsonl")):
                digest.update(file.read_bytes())
            digests[engine, devices] = digest.hexdigest()
            print(f"{engine} {devices}: {rates[engine, devices]:.1f} images/s, start-up included; {load()}", flush=True)
    if len(set(digests.values())) != 1:
        sys.exit(f"the captions differ: {digests}")
    print("the same captions, byte for byte")
    pairs = [(("ddp", 2), ("ddp", 1)), (("ray", 2), ("ray", 1)), (("ddp", 1), ("local", 1)), (("ray", 1), ("local", 1))]
    for over, under in pairs:
        if over in rates and under in rates:
            print(f"{over[0]} {over[1]} / {under[0]} {under[1]}, images/s: {rates[over] / rates[under]:.2f}")


if __name__ == "__main__":
    main()
