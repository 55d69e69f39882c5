"""The order of the training captions, and the loaders over it: bucketed by length, resumable in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from captioner.data.images import ImageError
from captioner.errors import UserError


class BucketSampler(Sampler[list[int]]):
    """Batches of items of like length, in another order each epoch, that depends on (seed, epoch) alone.

    The items are shuffled, cut into pools of `pool` batches, sorted by length within a pool, cut into batches, and
    the batches are shuffled. Every process draws the same batches and takes each `world`-th item of every one, so that
    the processes together do at each step what one alone would, on captions of like length. A last batch of fewer items
    than processes is filled up from its beginning.

    Args:
        lengths: (items,) words of each.
        batch_size: items in a batch of all processes.
        seed: of the order.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1, pool: int = 50
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.pool = lengths, batch_size, seed, pool
        self.rank, self.world = rank, world
        self.epoch, self.skip = 0, 0

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


def unreadable_image(what: ImageError | str) -> UserError:
    """What stops a training at an image that cannot be read."""
    return UserError(f"{what}: mend or remove it, or use --data.skip_bad_images to skip such images")


class CaptionLoader(DataLoader):
    """A DataLoader over the batches of a :class:`CaptionDataset`.

    Raises:
        UserError: an image cannot be read.
    """

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, ImageError):
                raise unreadable_image(batch)
            yield batch


class ResumableLoader(CaptionLoader):
    """A loader over a :class:`BucketSampler` that Lightning can stop and restart in mid-epoch."""

    sampler: BucketSampler
    delivered = 0

    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        dataset.epoch = self.sampler.epoch
        self.delivered = self.sampler.skip
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far this epoch has gone."""
        return {"delivered": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration begins there; after a whole epoch, at the beginning of the next one."""
        self.sampler.skip = state["delivered"] % len(self)
