"""The mean of a model's weights before and after a training, which keeps what the model knew.

Wortsman et al. 2022, Robust fine-tuning of zero-shot models, with the share of the weights before chosen on validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from captioner import metrics
from captioner.config import SearchConfig
from captioner.data.dataset import Batch
from captioner.metrics.tokenizers import TOKENIZERS, tokenizer_of
from captioner.models.captioner import Captioner

SHARES = (0.85, 0.7, 0.5, 0.3, 0.15, 0.0)
Z = 1.645  # the 95 % quantile of the normal distribution


class StartWeights(pl.Callback):
    """Keeps the weights that a training begins with, also in its checkpoints, so that a resumed run has them."""

    weights: dict[str, Tensor]

    def setup(self, trainer: pl.Trainer, task: Any, stage: str) -> None:
        self.weights = {name: value.detach().cpu().clone() for name, value in task.model.weights().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = state_dict["weights"]


def mix(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """share · start + (1 − share) · trained for each tensor of floats; others are those of `trained`."""
    return {
        name: torch.lerp(value.float(), start[name].float(), share) if value.is_floating_point() else value
        for name, value in trained.items()
    }


def largest_share(ciders: Mapping[float, np.ndarray]) -> float:
    """The largest share whose captions are not significantly worse than those of the best.

    `ciders` has the CIDEr-D of the same N images for each share. A share is worse if its mean is below the best by more
    than Z standard errors of the paired difference (p < 0.05, one-sided): where nothing is gained, most is kept.
    """
    best = max(ciders.values(), key=lambda each: each.mean())
    behind = {share: best - cider for share, cider in ciders.items()}
    error = {share: d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else 0.0 for share, d in behind.items()}
    return max(share for share, d in behind.items() if d.mean() <= Z * error[share])


@torch.inference_mode()
def cider_of_shares(
    model: Captioner,
    start: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    batches: Callable[[], Iterable[Batch]],
    references: Sequence[Sequence[Sequence[str]]],
    search: SearchConfig,
) -> dict[float, np.ndarray]:
    """For each of SHARES, the CIDEr-D (× 100) of every image of `batches`; the model's weights are changed."""
    tokenize, found = TOKENIZERS[tokenizer_of(model.vocabulary.level)], {}
    model.eval()
    for share in SHARES:
        model.load_weights(mix(start, trained, share))
        captions: dict[int, str] = {}
        for batch in batches():
            best = model.search(model.features(batch.images), search)
            numbers = batch.examples.tolist()
            captions |= {i: each[0].text if each else "" for i, each in zip(numbers, best, strict=True)}
        hypotheses = tokenize(captions[example] for example in sorted(captions))
        found[share] = 100 * np.asarray(metrics.cider_d([references[i] for i in sorted(captions)], hypotheses))
    return found


def keep_share(
    task: Any, data: Any, device: torch.device, trained: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Trained weights mixed with those of the start by ``train.start_weight``; prints what auto has chosen."""
    share: float | Literal["auto"] = task.config.start_weight
    if share == "auto":
        model, search = task.model.to(device), task.search_config
        ciders = cider_of_shares(
            model, start, trained, lambda: data.validation_batches(device), task.references, search
        )
        share = largest_share(ciders) if any(each.any() for each in ciders.values()) else 0.0  # val_cider stays 0
        scores = ", ".join(f"{cider.mean():.2f} with {each:g}" for each, cider in ciders.items())
        print(f"start_weight {share:g}, the largest that is not significantly worse: val_cider {scores}")
    return mix(start, trained, share)
