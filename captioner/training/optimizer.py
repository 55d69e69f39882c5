"""AdamW with warm-up and cosine decay: parameter groups and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner.config import TrainConfig


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over `warmup` × `steps` steps, then half a cosine down to 0."""
    climb = warmup * steps
    if step < climb:
        return (step + 1) / (climb + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - climb) / max(1.0, steps - climb))))


def make_optimizer(model: Any, config: TrainConfig, steps: int, fused: bool) -> Any:
    """Optimiser and schedule of a model with a `decoder` and maybe an `encoder`, in the format of Lightning.

    Weight decay applies to matrices other than the word embedding. The decoder is trained with `lr`, the stages of the
    encoder with ``encoder_lr · encoder_lr_decay^d``, where the last stage has depth d = 0.
    """
    rates = [(parameter, config.lr) for parameter in model.decoder.parameters()]
    encoder: Any = getattr(model, "encoder", None)
    if encoder is not None:
        trained = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        decay = config.encoder_lr_decay
        rates += [(parameter, config.encoder_lr * decay ** encoder.stages_after[name]) for name, parameter in trained]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, lr in rates:
        decays = parameter.dim() >= 2 and parameter is not model.decoder.embedding.weight
        groups.setdefault((lr, config.weight_decay if decays else 0.0), []).append(parameter)
    optimizer = AdamW(
        [{"params": each, "lr": lr, "weight_decay": weight_decay} for (lr, weight_decay), each in groups.items()],
        fused=fused,
    )
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, config.warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
