"""Decoding with attention against the plain LSTM, and the rewards of self-critical training against its step.

Decoding is Captioner.search of images from their features (49 cells of 4,096, or their mean) to the strings, beam 5,
100 images at a time, every caption of ten words; all decoders have the same hidden size. A step of self-critical
training samples five captions for each of 50 images, rewards them against the references of 6,000, and goes back
through them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from ratios import caption_lengths, clocks, load, rounds_argument, take_turns, verdict

from captioner.config import ModelConfig, SearchConfig, TrainConfig
from captioner.data.dataset import Batch
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, Vocabulary
from captioner.models.captioner import Captioner
from captioner.training.rewards import Rewards
from captioner.training.task import CaptionTask

VOCABULARY, CELLS, TOGETHER = 9_487, 49, 100
SEARCH = SearchConfig(beam=5, min_length=10, max_length=10)
LIMIT, SHARE = 2.0, 0.2


def model(**options: Any) -> Captioner:
    """With random weights."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=768, embedding_size=512, **options)
    return Captioner(config, Vocabulary([f"w{i}" for i in range(VOCABULARY - 4)]), None, "")


def decoding(rounds: int, images: int) -> bool:
    """Print the ratio of each kind of attention; whether they are within the limit."""
    features = torch.rand(images, CELLS, 4096).half()
    sides = {}
    for kind in ("none", "soft", "adaptive", "updown"):
        made = model(attention=kind, grid=0 if kind == "none" else 7).eval()
        inputs = features.mean(dim=1) if kind == "none" else features
        sides[kind] = lambda made=made, inputs=inputs: [made.search(part, SEARCH) for part in inputs.split(TOGETHER)]
    times = take_turns(sides, rounds)
    held = [
        verdict(f"beam 5, {kind} attention / LSTM, time", times[kind], times["none"], "<=", LIMIT)
        for kind in ("soft", "adaptive", "updown")
    ]
    return all(held)


def rewarding(rounds: int) -> bool:
    """Print the share of a self-critical step that goes into rewards; whether it is within its limit."""
    random = np.random.default_rng(0)
    words = np.arange(4, VOCABULARY)
    likely = 1 / words / (1 / words).sum()
    references = [
        [random.choice(words, length, p=likely).tolist() for length in caption_lengths(5, random)] for _ in range(6_000)
    ]
    rewards, spent = Rewards(references, END, 0.5), []

    def timed(*arguments: Any) -> np.ndarray:
        began = clocks()
        worth = rewards(*arguments)
        spent.append(clocks() - began)
        return worth

    task = CaptionTask(model().train(), TrainConfig(objective="scst"), SearchConfig(), [], 1, timed)  # type: ignore[arg-type]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    words, layout = torch.ones(50, 2).long(), Layout.of(np.ones((50, 1), dtype=bool))
    batch = Batch(torch.rand(50, 4096).half(), torch.arange(50), words, torch.arange(50), layout)

    def step() -> None:
        task.training_step(batch, 0).backward()

    times = take_turns({"step": step}, rounds)["step"]
    return verdict("rewards / self-critical step, time", spent[1:], times, "<=", SHARE)


def main() -> bool:
    """Print the ratios; whether they are within their limits."""
    parser = rounds_argument(__doc__, 5)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    print(load())
    held = [decoding(options.rounds, options.count), rewarding(options.rounds)]
    return all(held)


if __name__ == "__main__":
    sys.exit(not main())
