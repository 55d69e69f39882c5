"""Training on features against a bare loop of the same matrix products, on the CPU.

Ours is the whole of ``captioner train``: sampler, dataset, loader, Lightning, its callbacks and loggers, dropout, label
smoothing, clipping. Only the features (random numbers) are generated here. Bare is embedding, nn.LSTM on the padded
batch, the output layer on the real tokens, cross-entropy, backward and fused AdamW, on tensors made beforehand.

The sides take turns within one process: a callback runs the bare step on each batch that Lightning has finished, and
our clock runs at all other times, so it includes everything that Lightning does between batches.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from ratios import caption_lengths, clocks, median, rounds_argument, seconds, spread, verdict
from torch import Tensor, nn

from captioner.__main__ import main as captioner
from captioner.data.dataset import Batch
from captioner.data.vocabulary import PAD
from captioner.training import callbacks
from captioner.training import split as data_split

VOCABULARY, SIZE, FEATURES, BATCH = 9_487, 512, 2_048, 500
WARM_UP = 3
LIMIT = 0.95


def write_data(folder: Path, batches: int) -> None:
    """Annotations of `batches` batches for training, and of one image for validation; the images are empty."""
    random = np.random.default_rng(0)
    lengths = caption_lengths(batches * BATCH, random)
    share = 1 / np.arange(1, VOCABULARY - 4 + 1)
    words = random.choice(len(share), lengths.sum(), p=share / share.sum())  # Zipf's law
    words[random.permutation(len(words))[: len(share)]] = np.arange(len(share))  # each of them at least once
    captions = [" ".join(f"w{word}" for word in part) for part in np.split(words, np.cumsum(lengths)[:-1])]
    (folder / "images").mkdir()
    for split, used in (("train", captions), ("val", captions[:5])):
        images = [{"id": i, "file_name": f"{split}{i}.jpg"} for i in range(len(used) // 5)]
        for image in images:
            (folder / "images" / str(image["file_name"])).touch()
        annotations = [{"image_id": i // 5, "caption": caption} for i, caption in enumerate(used)]
        (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def random_features(encoder: Any, paths: list[Path], *_: Any, shape: tuple[int, ...] = (FEATURES,)) -> Any:
    """Features that depend on the name of an image alone, since training computes some again and compares them."""
    for path in paths:
        random = np.random.default_rng(zlib.crc32(path.name.encode()))
        yield random.random((1, *shape), dtype=np.float32).astype(np.float16)


class Bare:
    """The same matrix shapes without anything else; with `concatenated`, the image is concatenated to each word."""

    def __init__(self, concatenated: bool = False) -> None:
        self.project = nn.Linear(FEATURES, SIZE) if concatenated else None
        self.embedding = nn.Embedding(VOCABULARY, SIZE, padding_idx=PAD)
        self.rnn = nn.LSTM(SIZE * 2 if concatenated else SIZE, SIZE, batch_first=True)
        self.output = nn.Linear(SIZE, VOCABULARY)
        modules = nn.ModuleList(part for part in vars(self).values() if part is not None)
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, fused=True)

    def step(self, features: Tensor, words: Tensor, image_of: Tensor, real: Tensor, targets: Tensor) -> None:
        """One step on (I, F) features, (N, T) words, (N,) images; (R,) places of the real tokens, (R,) targets."""
        x = self.embedding(words)
        if self.project is not None:
            image = self.project(features)[image_of]
            x = torch.cat([x, image.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=2)
        hidden, _ = self.rnn(x)
        loss = F.cross_entropy(self.output(hidden.flatten(0, 1)[real]), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Turns(pl.Callback):
    """Runs the bare loops on each batch after ours."""

    def __init__(self) -> None:
        self.sides = {"bare": Bare(), "concatenated": Bare(concatenated=True)}
        self.times: dict[str, list[np.ndarray]] = {"ours": [], "bare": [], "concatenated": []}
        self.began = clocks()

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop our clock, let the others run, start it again."""
        self.times["ours"].append(clocks() - self.began)
        targets = batch.words[:, 1:].flatten()
        real = (targets != PAD).nonzero()[:, 0]
        words, features = batch.words[:, :-1].contiguous(), batch.images.float()
        for name, side in self.sides.items():
            step = partial(side.step, features, words, batch.image_of, real, targets[real])
            self.times[name].append(seconds(step))
        self.began = clocks()


def main() -> bool:
    """Print the ratio; whether it is within the limit."""
    rounds = rounds_argument(__doc__, 20).parse_args().rounds
    turns, real_callbacks = Turns(), callbacks.make_callbacks
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(callbacks, "make_callbacks", lambda *a: [*real_callbacks(*a), turns]),
        patch.object(data_split, "extract_features", random_features),
    ):
        folder = Path(name)
        write_data(folder, rounds + WARM_UP)
        options = {
            "data.train": folder / "train.json",
            "data.train_images": folder / "images",
            "data.val": folder / "val.json",
            "data.val_images": folder / "images",
            "data.min_count": 1,
            "data.batch_size": BATCH,
            "data.feature_cache": folder / "features",
            "model.second_size": 0,
            "model.embedding_size": SIZE,
            "model.hidden_size": SIZE,
            "train.epochs": 1,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",  # that of the bare loop
            "output": folder / "run",
        }
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as complaints:
            code = captioner(["train", *(f"--{option}={value}" for option, value in options.items())])
        if code:
            raise SystemExit(complaints.getvalue())
    times = {side: values[WARM_UP:] for side, values in turns.times.items()}
    for side, values in times.items():
        print(f"{side:12} {BATCH / median(values):7.0f} captions/s")
    print(f"for information, ours / concatenated: {spread(times['concatenated'], times['ours'])}")
    return verdict("ours / bare, captions/s", times["bare"], times["ours"], ">=", LIMIT)


if __name__ == "__main__":
    sys.exit(not main())
