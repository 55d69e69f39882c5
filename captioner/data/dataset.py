"""Examples to batches: captions bucketed by length, images decoded or their rows of features looked up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.annotations import Example
from captioner.data.clips import load_pixels
from captioner.data.flip_captions import flip_caption
from captioner.data.images import ImageError, train_transform
from captioner.data.vocabulary import END, PAD, START, TokenizedCaptions, Vocabulary, tokenize_all


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

    With `frames` clips and albums instead, (frames, 3, size, size); see :func:`captioner.data.clips.load_pixels`.
    Among the paths may be a :class:`captioner.data.addresses.StoredImage`.
    """

    def __init__(self, paths: Sequence[Any], size: int, frames: int = 0) -> None:
        self.paths, self.size, self.frames = paths, size, frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor | ImageError:
        path = self.paths[i]
        try:
            return load_pixels(path, self.size, self.frames)
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
            :func:`captioner.data.flip_captions.flip_caption`).
        by_image: items are examples with all of their captions, instead of captions.
        frames: examples are clips or albums of so many.
        mirrored_rows: (examples,) as `rows`, of the mirrored images; needed for horizontal_flip of features.
        tokenized: the captions of the examples, where they have been split into words already.
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
        tokenized: TokenizedCaptions | None = None,
    ) -> None:
        self.frames = frames
        self.examples, self.image_size, self.rows, self.table = examples, image_size, rows, table
        self.augment, self.by_image = augment, by_image
        self.mirrored_rows = mirrored_rows
        self.epoch = 0
        if tokenized is None:
            tokenized = tokenize_all((c for e in examples for c in e.captions), vocabulary.level)
        self.flat, self.lengths = vocabulary.encode_all(tokenized, max_length)
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
                exchanged = flip_caption(vocabulary.split(text))
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
            return load_pixels(path, self.image_size, self.frames)
        # The image's own generator: the same augmentation in whichever process and after whichever restart.
        seed = int(np.random.SeedSequence((self.augment, self.epoch, i)).generate_state(1)[0])

        def view(image: Image, size: int) -> Tensor:  # the same for all frames
            return train_transform(image, size, torch.Generator().manual_seed(seed))

        return load_pixels(path, self.image_size, self.frames, view)


def read_images(
    paths: Sequence[Any], size: int, batch_size: int, workers: int = 0, frames: int = 0
) -> Iterator[tuple[Tensor, list[ImageError | None]]]:
    """Decode images, or clips and albums of so many `frames`, in batches of that many images, in order.

    Yields:
        images: (G, 3, size, size) or (G, frames, 3, size, size) uint8, the G images of this batch that could be
            read.
        errors: one for each image of the batch; None for those G.
    """
    dataset, together = ImageDataset(paths, size, frames), clips_per_batch(batch_size, frames)
    # Put together where they are read: each tensor that a process hands on takes an open file.
    yield from DataLoader(dataset, together, num_workers=workers, collate_fn=partial(collate_images, size=size))


def clips_per_batch(batch_size: int, frames: int) -> int:
    """How many clips of so many frames (0: images) make a batch of so many images; 1 at least."""
    return max(1, batch_size // max(1, frames))


def collate_images(items: Sequence[Tensor | ImageError], size: int) -> tuple[Tensor, list[ImageError | None]]:
    """What came of a batch of :class:`ImageDataset`, as :func:`read_images` yields it."""
    good = [item for item in items if isinstance(item, Tensor)]
    images = torch.stack(good) if good else torch.empty((0, 3, size, size), dtype=torch.uint8)
    return images, [item if isinstance(item, ImageError) else None for item in items]
