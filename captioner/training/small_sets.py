"""Defaults of a training on few captions: batch size, epochs, moving average and learning rate from their number."""

from __future__ import annotations

import math
from typing import Any

from captioner.config import TrainConfig

SMALL = 10_000  # captions; the other defaults are for more
STEPS = 600  # of a training from random weights
TUNING_STEPS, TUNING_RATE = 200, 1e-4  # of one that begins as a trained captioner


def small_set_options(
    captions: int, fine_tuning: bool, batch_size: int | None = None, epochs: int | None = None
) -> dict[str, Any]:
    """Values by option for a set of so many captions, with this batch size and number of epochs if they are given.

    A batch has about a fortieth of the captions, 16 to 256, and the epochs have about as many steps as it takes to
    converge. The moving average is over a tenth of the steps. {} for a set that is not small.

    >>> small_set_options(1500, fine_tuning=False)
    {'data.batch_size': 64, 'train.epochs': 25, 'train.ema_decay': 0.983, 'train.lr': 0.003}
    >>> small_set_options(1500, fine_tuning=True, epochs=1)
    {'data.batch_size': 64, 'train.epochs': 1, 'train.ema_decay': 0.583, 'train.lr': 0.0001}
    """
    if captions >= SMALL:
        return {}
    batch_size = batch_size or min(256, max(16, 2 ** math.ceil(math.log2(captions / 40))))
    batches = -(-captions // batch_size)
    epochs = epochs or max(1, round((TUNING_STEPS if fine_tuning else STEPS) / batches))
    decay = round(1 - 10 / max(20, epochs * batches), 3)
    lr = TUNING_RATE if fine_tuning else TrainConfig.lr
    return {"data.batch_size": batch_size, "train.epochs": epochs, "train.ema_decay": decay, "train.lr": lr}
