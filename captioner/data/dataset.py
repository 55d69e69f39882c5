"""Examples to batches: captions bucketed by length, images decoded or their rows of features looked up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from captioner.data.annotations import Example
from captioner.data.clips import look
from captioner.data.flip_captions import mirrored
from captioner.data.images import ImageError, train_transform
from captioner.data.vocabulary import END, PAD, START, Numbered, Vocabulary, number
from captioner.errors import UserError


class Batch(NamedTuple):
    """I images with N captions.

    Attributes:
        images: what the encoder still has to do decides: (I, 3, H, W) uint8 images, (I, F) fp16 features, or
            (I,) int64 rows of a feature table that lies on the device; of S frames each, (I, S, 3, H, W) or (I, S, F).
        image_of: (N,) which of the I images a caption belongs to.
        words: (N, T + 2) ids: START, the words, END, PAD.
        examples: (I,) numbers of the examples; those of mirrored images come after the last example's.
    """

    images: Tensor
    image_of: Tensor
    words: Tensor
    examples: Tensor


class ImageDataset(Dataset):
    """Images by number: (3, size, size) uint8, or the :class:`ImageError` of one that cannot be read.

    With `frames` clips and albums instead, (frames, 3, size, size); see :func:`captioner.data.clips.look`. Among the
    paths may be a :class:`captioner.data.addresses.StoredImage`.
    """

    def __init__(self, paths: Sequence[Any], size: int, frames: int = 0) -> None:
        self.paths, self.size, self.frames = paths, size, frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor | ImageError:
        path = self.paths[i]
        try:
            return look(path, self.size, self.frames)
        except ImageError as error:
            return error


class CaptionDataset(Dataset):
    """The captions of a list of examples: indexed with the numbers of a whole batch, it answers with a :class:`Batch`.

    Args:
        examples: images and captions.
        vocabulary: gives the ids.
        max_length: longer captions are cut to this many words.
        image_size: images are decoded to this side, unless `rows` are given.
        rows: (examples,) the row of the feature table of each example; None to decode images.
        table: (rows, F) features as a map, read batch by batch; None where the table lies on the device.
        augment: seed of the training augmentation, or None for the evaluation transform.
        horizontal_flip: in each epoch of the training, mirror half of the images, drawn anew, and exchange left and
            right in their captions; an image with a caption of which that is not clear is never mirrored (see
            :func:`captioner.data.flip_captions.mirrored`).
        by_image: items are examples with all of their captions, instead of captions.
        frames: examples are clips or albums of so many.
        mirrored_rows: (examples,) as `rows`, of the mirrored images; needed for horizontal_flip of features.
        numbered: the captions of the examples, where they have been split into words already.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        max_length: int,
        image_size: int,
        rows: np.ndarray | None = None,
        table: np.ndarray | None = None,
        augment: int | None = None,
        horizontal_flip: bool = False,
        by_image: bool = False,
        frames: int = 0,
        mirrored_rows: np.ndarray | None = None,
        numbered: Numbered | None = None,
    ) -> None:
        self.frames = frames
        self.examples, self.image_size, self.rows, self.table = examples, image_size, rows, table
        self.augment, self.by_image = augment, by_image
        self.mirrored_rows = mirrored_rows
        self.epoch = 0
        if numbered is None:
            numbered = number((c for e in examples for c in e.captions), vocabulary.level)
        self.flat, self.lengths = vocabulary.encode_all(numbered, max_length)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        counts = [len(e.captions) for e in examples]
        self.example_of = np.repeat(np.arange(len(examples)), counts)
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])
        self.can_mirror = np.zeros(len(examples), dtype=bool)
        if horizontal_flip and augment is not None:
            self.can_mirror[:] = True
            self.flat_mirrored = self.flat.copy()
            for i, text in enumerate(c for e in examples for c in e.captions):
                if not ("left" in text.lower() or "right" in text.lower()):
                    continue
                exchanged = mirrored(vocabulary.split(text))
                if exchanged is None:
                    self.can_mirror[self.example_of[i]] = False
                else:
                    ids = vocabulary.encode(exchanged)[:max_length]
                    self.flat_mirrored[self.offsets[i] : self.offsets[i + 1]] = ids

    def __len__(self) -> int:
        return len(self.examples) if self.by_image else len(self.lengths)

    def __getitem__(self, items: Sequence[int]) -> Batch | ImageError:
        """The batch of these captions; of these images, where `by_image`; or the image that cannot be read."""
        if self.by_image:
            spans = [np.arange(self.first_caption[i], self.first_caption[i + 1]) for i in items]
            captions, examples = np.concatenate(spans), np.asarray(items)
            image_of = np.repeat(np.arange(len(items)), [len(span) for span in spans])
        else:
            captions = np.asarray(items)
            examples, image_of = np.unique(self.example_of[captions], return_inverse=True)
        lengths = self.lengths[captions]
        words = np.full((len(captions), lengths.max() + 2), PAD, dtype=np.int64)
        words[:, 0] = START
        place = np.arange(words.shape[1] - 1)
        inside = place < lengths[:, None]  # (N, T + 1)
        source, mirror = (self.offsets[captions][:, None] + place)[inside], self._mirror(examples)
        words[:, 1:][inside] = self.flat[source]
        if mirror.any():
            of_mirrored = mirror[image_of][:, None].repeat(place.size, 1)[inside]
            words[:, 1:][inside] = np.where(of_mirrored, self.flat_mirrored[source], self.flat[source])
        words[np.arange(len(captions)), lengths + 1] = END
        try:
            images = self._images(examples, mirror)
        except ImageError as error:  # raised in a worker, it would arrive with the worker's traceback
            return error
        examples = examples + len(self.examples) * mirror
        return Batch(images, torch.from_numpy(image_of), torch.from_numpy(words), torch.from_numpy(examples))

    def _mirror(self, examples: np.ndarray) -> np.ndarray:
        """(I,) bool: which of these images are mirrored in this epoch, in whichever process and batch."""
        if not self.can_mirror.any():
            return np.zeros(len(examples), dtype=bool)
        drawn = np.random.default_rng((self.augment or 0, self.epoch, 1)).random(len(self.examples)) < 0.5
        return (drawn & self.can_mirror)[examples]

    def _images(self, examples: np.ndarray, mirror: np.ndarray) -> Tensor:
        if self.rows is not None:
            rows = self.rows[examples]
            if self.mirrored_rows is not None:
                rows = np.where(mirror, self.mirrored_rows[examples], rows)
            return torch.from_numpy(rows if self.table is None else self.table[rows])
        images = [self._image(int(i)) for i in examples]
        return torch.stack([p.flip(-1) if m else p for p, m in zip(images, mirror, strict=True)])  # (I, 3, H, W)

    def _image(self, i: int) -> Tensor:
        path = self.examples[i].path
        if self.augment is None:
            return look(path, self.image_size, self.frames)
        # The image's own generator: the same augmentation in whichever process and after whichever restart.
        seed = int(np.random.SeedSequence((self.augment, self.epoch, i)).generate_state(1)[0])

        def view(image: Image, size: int) -> Tensor:  # the same for all frames
            return train_transform(image, size, torch.Generator().manual_seed(seed))

        return look(path, self.image_size, self.frames, view)


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


def bad_image(what: ImageError | str) -> UserError:
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
                raise bad_image(batch)
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


def best_device() -> str:
    """The accelerator of this machine, for work outside a Lightning trainer."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def choose_workers(workers: int, device: str) -> int:
    """`workers`, or for -1: none where the CPU does the network's work too, else one a core, up to 8."""
    if workers < -1:
        raise UserError(f"--workers is {workers}: expected -1 (choose) or more")
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)


def as_batch(batch: Any) -> Any:
    """Collate function that leaves a batch as it is."""
    return batch


def read_images(
    paths: Sequence[Any], size: int, batch_size: int, workers: int = 0, frames: int = 0
) -> Iterator[tuple[Tensor, list[ImageError | None]]]:
    """Decode images, or clips and albums of so many `frames`, in batches of that many images, in order.

    Yields:
        images: (G, 3, size, size) or (G, frames, 3, size, size) uint8, the G images of this batch that could be
            read.
        errors: one for each image of the batch; None for those G.
    """
    dataset, together = ImageDataset(paths, size, frames), clips_together(batch_size, frames)
    # Put together where they are read: each tensor that a process hands on takes an open file.
    yield from DataLoader(dataset, together, num_workers=workers, collate_fn=partial(sifted, size=size))


def clips_together(batch_size: int, frames: int) -> int:
    """How many clips of so many frames (0: images) make a batch of so many images; 1 at least."""
    return max(1, batch_size // max(1, frames))


def sifted(items: Sequence[Tensor | ImageError], size: int) -> tuple[Tensor, list[ImageError | None]]:
    """What came of a batch of :class:`ImageDataset`, as :func:`read_images` yields it."""
    good = [item for item in items if isinstance(item, Tensor)]
    images = torch.stack(good) if good else torch.empty((0, 3, size, size), dtype=torch.uint8)
    return images, [item if isinstance(item, ImageError) else None for item in items]
