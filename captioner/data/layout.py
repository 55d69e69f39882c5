"""Where the words of a batch of captions are, computed on the CPU, so that a training step never waits for a GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioner.data.vocabulary import PAD, UNK


class Layout(NamedTuple):
    """The places of the R words to predict from inputs (N, T), and the order in which attention goes through them.

    Selecting with these indices has results of known size. A mask would make the CPU wait for the GPU to count it.

    Two captions of 2 and 3 words to predict, with places 0 1 2 and 3 4 5 in the inputs (2, 3)::

        targets   [0, 1, 3, 4, 5]
        order     [1, 0]                                      longest first
        sizes     [2, 2, 1]                                   captions at each step: the first of `order`
        steps     [3, 0, 4, 1, 5]                             the same places, step by step, in this order
        rows      [1, 3, 0, 2, 4]                             of `steps`, for each of `targets`
    """

    targets: Tensor  # (R,) places t + n · T
    order: Tensor  # (N,) captions
    steps: Tensor  # (S,) places of all inputs up to the last word to predict of each caption; S ≥ R
    rows: Tensor  # (R,)
    sizes: list[int]  # (longest,), add up to S

    @classmethod
    def of(cls, real: np.ndarray) -> Layout:
        """The layout of the words to predict, `real` (N, T) bool."""
        lengths = (real * np.arange(1, real.shape[1] + 1)).max(axis=1)  # (N,)
        order = np.argsort(-lengths, kind="stable")
        active = np.arange(lengths.max())[:, None] < lengths[order]  # (longest, N)
        step, place = active.nonzero()  # (S,) each
        steps = order[place] * real.shape[1] + step
        targets = np.flatnonzero(real)
        row_of = np.zeros(real.size, dtype=np.int64)
        row_of[steps] = np.arange(len(steps))
        tensors = [torch.from_numpy(part) for part in (targets, order, steps, row_of[targets])]
        return cls._make([*tensors, active.sum(axis=1).tolist()])

    @classmethod
    def of_words(cls, words: np.ndarray) -> Layout:
        """The layout of captions (N, T + 1), START first: every word after it but PAD and UNK is predicted."""
        return cls.of((words[:, 1:] != PAD) & (words[:, 1:] != UNK))

    def to(self, device: torch.device) -> Layout:
        """The same on a device, sent without waiting for it; one that is read ahead is there already."""
        cuda = device.type == "cuda"
        pinned = [part.pin_memory() if cuda and not part.is_cuda else part for part in self[:4]]
        return Layout._make([*(part.to(device, non_blocking=cuda) for part in pinned), self.sizes])
