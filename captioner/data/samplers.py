"""The order of the training captions, and loaders over it: bucketed by length, resumable within an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from captioner.data.images import ImageError
from captioner.data.prefetch import read_ahead
from captioner.errors import UserError


class BucketSampler(Sampler[list[int]]):
    """Batches of items of similar length, in an order that depends only on (seed, epoch).

    The items are shuffled, cut into pools of `pool` batches, sorted by length within each pool and cut into batches,
    which are shuffled. All processes draw the same batches and process `rank` takes every `world`-th item of each, so
    a step of all processes equals the step of a single process, on captions of similar length. A last
    batch of fewer items than processes is filled with repetitions of its items.

    Args:
        lengths: (items,) number of words of each.
        batch_size: items in a batch of all processes.
        rank, world: number of this process, and of all processes.
    """

    epoch = skip = 0

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1, pool: int = 50
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.pool = lengths, batch_size, seed, pool
        self.rank, self.world = rank, world

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        items = random.permutation(len(self.lengths))
        size = self.batch_size * self.pool
        pools = [items[i : i + size] for i in range(0, len(items), size)]
        items = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        order = random.permutation(len(batches))
        skip, self.skip = self.skip, 0
        for batch in (batches[i] for i in order[skip:]):
            yield np.resize(batch, max(len(batch), self.world))[self.rank :: self.world].tolist()


def unreadable_image(problem: ImageError | str, option: str = "--data.skip_bad_images") -> UserError:
    """The error that stops a command at an unreadable image, unless it is told to skip such images by the option."""
    return UserError(f"{problem}: repair or remove it, or use {option} to skip such images")


class CaptionLoader(DataLoader):
    """A DataLoader over a :class:`captioner.data.dataset.CaptionDataset`; an unreadable image is a UserError.

    With `ahead`, a device, its batches are read ahead: see :func:`captioner.data.prefetch.read_ahead`.
    """

    ahead: torch.device | None = None

    def __iter__(self) -> Any:
        batches = super().__iter__()
        for batch in read_ahead(batches, self.ahead) if self.ahead else batches:
            if isinstance(batch, ImageError):
                raise unreadable_image(batch)
            yield batch


class ResumableLoader(CaptionLoader):
    """A loader over a :class:`BucketSampler` that Lightning can stop and resume within an epoch."""

    sampler: BucketSampler
    dataset: Any
    delivered = 0  # batches in this epoch

    def __iter__(self) -> Any:
        self.dataset.epoch = self.sampler.epoch
        self.delivered = self.sampler.skip
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"delivered": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after that many batches; after a whole epoch, at the start of the next one."""
        self.sampler.skip = state["delivered"] % len(self)
