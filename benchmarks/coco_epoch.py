"""An epoch of training on a set of COCO's size whose features do not fit in memory, with a step that only waits.

The set is that of scale_start.py; the features of its 118,000 images on a 7 × 7 grid (47 GB) are a sparse file of that
shape. The data module and Lightning are those of a training. In place of a GPU, which computes beside the CPU, a step
sleeps. Printed are the share of the time in which the step waits for its batch, read ahead and not, and the memory of
the process during the epoch.

    python benchmarks/coco_epoch.py                      # 50 ms a step
    python benchmarks/coco_epoch.py --check              # captioner train --check of the recipes, too (docs/coco.md)
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from ratios import ROOT
from scale_start import memory, write_annotations

from captioner.config import DataConfig, ModelConfig
from captioner.data import samplers
from captioner.files import write_json
from captioner.models.captioner import Captioner
from captioner.models.encoder import weights_digest
from captioner.training import split
from captioner.training.datamodule import CaptionData
from captioner.training.run import configure_process

RECIPES = {"coco_lstm": (), "coco_attention": (), "coco_scst": ("coco_attention",)}  # with the configs before them
WAIT, FLAT = 0.05, 30  # limits: share of the time, MB


def sparse_features(folder: Path, fingerprint: Any, names: list[str], shape: tuple[int, ...], rows_from: Any) -> None:
    """In place of write_features: a file of zeros but for one number in a row, which takes little room on the disk."""
    folder.mkdir(parents=True)
    rows = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float16, shape=(len(names), *shape))
    rows.reshape(len(rows), -1)[:, 0] = 1  # a row of zeros is refused
    write_json(folder / "index.json", {"fingerprint": fingerprint, "names": names, "unreadable": []})


class Waiting(pl.LightningModule):
    """A model whose step takes `seconds` of the device and none of the CPU."""

    def __init__(self, seconds: float, steps: int) -> None:
        super().__init__()
        self.seconds, self.steps = seconds, steps
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False  # nothing is trained
        self.ends: list[float] = []
        self.waited = 0.0
        self.megabytes: list[float] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.ends:
            self.waited += time.perf_counter() - self.ends[-1]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Not called."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % max(1, self.steps // 10) == self.steps // 20:
            gc.collect()
            self.megabytes.append(sum(memory()[name] for name in ("RssAnon", "RssFile")))
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight])

    @property
    def share(self) -> float:
        """The share of the time between the first and the last step in which the step waits for its batch."""
        return self.waited / (self.ends[-1] - self.ends[0])


def epoch(data: CaptionData, seconds: float, steps: int, ahead: bool) -> Waiting:
    """The model after that many steps on the data."""
    read_ahead = samplers.read_ahead
    samplers.read_ahead = read_ahead if ahead else lambda batches, device: batches
    model = Waiting(seconds, steps)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=steps,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    ).fit(model, data)
    samplers.read_ahead = read_ahead
    return model


def check(folder: Path, names: dict[str, str]) -> None:
    """``captioner train --check`` of each recipe, with random weights in place of ImageNet's, which cost the same."""
    from torchvision.models import get_model_weights, resnet101

    file = folder / "torch/hub/checkpoints" / get_model_weights("resnet101").DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(resnet101(weights=None).state_dict(), file)
    environment = {**os.environ, "TORCH_HOME": str(folder / "torch")}
    options = [word for name, value in names.items() for word in (f"--data.{name}", value)]
    for recipe, before in RECIPES.items():
        given = [word for name in (*before, recipe) for word in ("--config", name)]
        given += ["--init_from", folder / "start.safetensors"] if before else []
        given += [*options, "--output", folder / recipe, "--check"]
        print(f"captioner train --check, {recipe}", flush=True)
        command = [sys.executable, "-m", "captioner", "train", *map(str, given)]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)


def main() -> bool:
    """Print the figures; return whether they are within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, default=0.05, help="seconds of the device in a step")
    parser.add_argument("--steps", type=int, default=0, help="steps, if not a whole epoch")
    parser.add_argument("--share", type=float, default=1.0, help="of COCO's size, for a quick run")
    parser.add_argument("--check", action="store_true", help="also captioner train --check of the recipes")
    options = parser.parse_args()
    configure_process()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = [Path(shutil.copy(photo, folder)) for photo in (ROOT / "data/photos").glob("*.jpg")]
        write_annotations(folder, options.share, photos)
        pairs = [(s, e, p) for s in ("train", "val") for e, p in (("", f"captions_{s}.json"), ("_images", s))]
        names = {f"{s}{e}": str(folder / p) for s, e, p in pairs}
        split.write_features = sparse_features  # type: ignore[assignment]
        config: Any = {**names, "min_count": 5, "feature_cache": str(folder / "sparse"), "feature_memory": 0}
        model = ModelConfig(grid=7, attention="updown")
        data = CaptionData(DataConfig(**config), model)
        batches = len(data.train_sampler())
        steps = options.steps or batches
        print(
            f"{len(data.train_set.lengths):,} captions, {batches:,} batches of {data.data.batch_size}, {steps:,} taken"
        )
        alone = epoch(data, options.step, min(200, steps), ahead=False)
        ours = epoch(data, options.step, steps, ahead=True)
        grown = ours.megabytes[-1] - ours.megabytes[0]
        print(f"share of the time that steps of {options.step * 1000:.0f} ms wait for their batch:")
        print(f"  read in turn {alone.share:.1%}; read ahead {ours.share:.1%} (limit {WAIT:.0%})")
        print(
            f"MB of the process: {' '.join(f'{mb:.0f}' for mb in ours.megabytes)}; grown by {grown:.0f} (limit {FLAT})"
        )
        if options.check:
            Captioner(model, data.vocabulary, None, weights_digest("resnet50_v1")).save(folder / "start.safetensors")
            check(folder, names)
    return ours.share <= WAIT and grown <= FLAT


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
