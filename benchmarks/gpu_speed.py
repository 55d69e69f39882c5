"""Training and captioning on a GPU: captions/s, images/s, and the share of the time in which the device is busy.

Training is the whole of ``captioner train`` on generated features: the plain LSTM, Up-Down attention on a 7 × 7 grid,
and self-critical training of the LSTM. Captioning is the shipped model on images in memory. The device is busy for the
time of its kernels, as torch.profiler counts them, over WATCHED steps after WARM_UP. There is no limit: rates of
different cards cannot be compared, and the share is for information.

``--device cpu`` tries the script out where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import ratios  # noqa: F401  # finds the captioner beside this folder
import torch
from torch.profiler import ProfilerActivity, profile
from train_speed import FEATURES, random_features, write_data

from captioner import load
from captioner.__main__ import main as captioner
from captioner.config import ModelConfig, SearchConfig
from captioner.data.vocabulary import Vocabulary
from captioner.models.captioner import Captioner
from captioner.training import callbacks
from captioner.training import split as data_split

WARM_UP, WATCHED = 10, 40  # steps
LSTM = {"model.second_size": 0, "model.embedding_size": 512, "model.hidden_size": 512}
UPDOWN = {**LSTM, "model.attention": "updown", "model.grid": 7}
CRITICAL = {"train.objective": "scst", "data.vocabulary": "count"}
RUNS = {"lstm": LSTM, "updown": UPDOWN, "scst": {**LSTM, **CRITICAL}}


class Rate(pl.Callback):
    """Times the steps after the first ones, and then profiles as many again."""

    def __init__(self, cuda: bool) -> None:
        activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
        self.cuda, self.profile = cuda, profile(activities=activities)
        self.steps = self.captions = 0
        self.seconds = self.busy = 0.0

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if self.steps == WARM_UP:
            self._mark()
        elif self.steps <= WARM_UP + WATCHED:
            self.captions += len(batch.words)
            if self.steps == WARM_UP + WATCHED:
                self.seconds = self._mark()
                self.profile.start()
                self._mark()
        elif self.steps == WARM_UP + 2 * WATCHED:
            wall = self._mark()
            self.profile.stop()
            kernels = sum(event.self_device_time_total for event in self.profile.key_averages())  # microseconds
            self.busy = kernels / 1e6 / wall

    def _mark(self) -> float:
        """Seconds since the last mark, when all that was begun is done."""
        if self.cuda:
            torch.cuda.synchronize()
        now, before = time.perf_counter(), getattr(self, "marked", 0.0)
        self.marked = now
        return now - before


def training(name: str, device: str, batch_size: int) -> None:
    """Train, and print the rate."""
    options, rate, made = RUNS[name], Rate(device == "cuda"), callbacks.make_callbacks
    features = partial(random_features, shape=(49, FEATURES) if "model.grid" in options else (FEATURES,))
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.object(callbacks, "make_callbacks", lambda *given: [*made(*given), rate]),
        patch.object(data_split, "extract_features", features),
    ):
        folder = Path(temporary)
        write_data(folder, -(-(WARM_UP + 2 * WATCHED + 1) * batch_size // 500))
        given = {
            **{"data.train": folder / "train.json", "data.train_images": folder / "images"},
            **{"data.val": folder / "val.json", "data.val_images": folder / "images"},
            **{"data.min_count": 1, "data.batch_size": batch_size, "data.feature_cache": folder / "features"},
            **{"train.epochs": 1, "trainer.accelerator": "gpu" if device == "cuda" else device},
            **{"trainer.log_every_n_steps": 50, "output": folder / "run", **options},
        }
        if name == "scst":  # which goes on from a model
            given["init_from"] = folder / "start.safetensors"
            config = ModelConfig(**{option.removeprefix("model."): value for option, value in LSTM.items()})
            Captioner(config, Vocabulary(["a"]), None, "").save(given["init_from"])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as complaints:
            code = captioner(["train", *(f"--{option}={value}" for option, value in given.items())])
    if code:
        raise SystemExit(complaints.getvalue())
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GB at most" if rate.cuda else ""
    print(f"train {name}: {rate.captions / rate.seconds:,.0f} captions/s, busy {rate.busy:.0%}{memory}", flush=True)


def captioning(device: str, batches: int, batch_size: int = 32) -> None:
    """Encode and caption images, and print both rates."""
    model: Any = load(device=device)
    images = torch.randint(256, (batch_size, 3, model.image_size, model.image_size), dtype=torch.uint8)

    def encode() -> None:
        with torch.inference_mode():
            model.features(images.to(device)).cpu()

    def caption() -> None:
        model.search(images.to(device), SearchConfig(max_length=20))

    for name, work in (("encode", encode), ("encode and caption", caption)):
        work()
        began = time.perf_counter()
        for _ in range(batches):
            work()
        print(f"{name}: {batches * batch_size / (time.perf_counter() - began):,.0f} images/s", flush=True)


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch_size", type=int, default=500, help="captions in a batch")
    options = parser.parse_args()
    if options.device == "cuda":
        print(torch.cuda.get_device_name())
    for name in RUNS:
        training(name, options.device, options.batch_size)
    captioning(options.device, 20 if options.device == "cuda" else 1)


if __name__ == "__main__":
    main()
