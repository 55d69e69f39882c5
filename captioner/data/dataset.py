"""Turns examples into batches of padded captions, with decoded images or rows of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass
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
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, TokenizedCaptions, Vocabulary, tokenize_all
from captioner.devices import needed_workers


class Batch(NamedTuple):
    """I images with N captions.

    Attributes:
        images: the input of the model: (I, 3, H, W) uint8 images, (I, F) fp16 features, or (I,)
            int64 rows of a feature table on the device; for clips of S frames (I, S, 3, H, W) or (I, S, F).
        image_of: (N,) index of each caption's image, 0 … I − 1.
        words: (N, T + 2) ids: START, the words, END, PAD.
        examples: (I,) number of each image's example, plus the number of all for a flipped image: of 100 examples, 7 is
            the image of example 7 and 107 the same image flipped.
        layout: of the words to predict.
    """

    images: Tensor
    image_of: Tensor
    words: Tensor
    examples: Tensor
    layout: Layout


@dataclass(eq=False)
class CaptionDataset(Dataset):
    """The captions of a list of examples; an index is the list of items of a whole :class:`Batch`.

    Args:
        max_length: longer captions are cut to this many words, and have no END.
        image_size: side in pixels of the decoded images; unused with `rows`.
        rows: (examples,) each example's row in the feature table; None to decode images.
        read: features (I, F) of rows (I,), from a file; None if the table is on the device, which is sent rows alone.
        augment: seed of the training augmentation, or None for the evaluation transform.
        horizontal_flip: with `augment`, flip half of the images, drawn in each epoch, and exchange left and right
            in their captions; an image with a caption where that is unclear is never flipped (see
            :func:`captioner.data.flip_captions.flip_caption`).
        by_image: items are examples with all of their captions, instead of single captions.
        frames: examples are clips or albums of this many frames; 0: images.
        flipped_rows: (examples,) each flipped image's row; needed for horizontal_flip with `rows`.
        flip_pairs: for horizontal_flip, words and their opposites in another language than English.
        tokenized: the captions of the examples, if they are already tokenized.
    """

    examples: Sequence[Example]
    vocabulary: Vocabulary
    max_length: int
    image_size: int
    rows: np.ndarray | None = None
    read: Callable[[np.ndarray], Tensor] | None = None
    augment: int | None = None
    horizontal_flip: bool = False
    by_image: bool = False
    frames: int = 0
    flipped_rows: np.ndarray | None = None
    flip_pairs: Mapping[str, str] | None = None
    tokenized: InitVar[TokenizedCaptions | None] = None

    def __post_init__(self, tokenized: TokenizedCaptions | None) -> None:
        self.epoch = 0
        if tokenized is None:
            tokenized = tokenize_all((c for e in self.examples for c in e.captions), self.vocabulary.level)
        self.flat, self.lengths, self.cut = self.vocabulary.encode_all(tokenized, self.max_length)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])  # of each caption in `flat`
        counts = [len(e.captions) for e in self.examples]
        self.example_of = np.repeat(np.arange(len(counts)), counts)
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])
        self.can_flip = np.full(len(counts), self.horizontal_flip and self.augment is not None)
        if self.can_flip.any():
            self._add_flipped_captions()

    def _add_flipped_captions(self) -> None:
        """Append the ids of the flipped captions to `flat`; an image with an unclear caption cannot be flipped."""
        flipped = self.flat.copy()
        for i, text in enumerate(c for e in self.examples for c in e.captions):
            if self.flip_pairs or "left" in text.lower() or "right" in text.lower():
                words = flip_caption(self.vocabulary.split(text), self.flip_pairs)
                if words is None:
                    self.can_flip[self.example_of[i]] = False
                else:
                    flipped[self.offsets[i] : self.offsets[i + 1]] = self.vocabulary.encode(words)[: self.max_length]
        self.flat = np.concatenate([self.flat, flipped])

    def __len__(self) -> int:
        return len(self.examples) if self.by_image else len(self.lengths)

    def __getitem__(self, items: Sequence[int]) -> Batch | ImageError:
        """The batch of these captions, or of these examples if `by_image`; or the error of an image."""
        examples = captions = np.asarray(items)
        if self.by_image:
            spans = [np.arange(self.first_caption[i], self.first_caption[i + 1]) for i in items]
            captions, image_of = np.concatenate(spans), np.repeat(np.arange(len(items)), [len(span) for span in spans])
        else:
            examples, image_of = np.unique(self.example_of[captions], return_inverse=True)
        flipped = self._draw_flips()[examples]  # (I,)
        words = self._padded(captions, flipped[image_of])  # (N, T + 2)
        try:
            images = self._images(examples, flipped)
        except ImageError as error:  # raised in a worker, it would include the worker's traceback
            return error
        examples = examples + len(self.examples) * flipped
        tensors = [torch.from_numpy(part) for part in (image_of, words, examples)]
        return Batch._make([images, *tensors, Layout.of_words(words)])

    def _draw_flips(self) -> np.ndarray:
        """(examples,) bool: which images are flipped in this epoch, the same in every process and batch."""
        if not self.can_flip.any():
            return self.can_flip
        drawn = np.random.default_rng((self.augment or 0, self.epoch, 1)).random(len(self.examples)) < 0.5
        return drawn & self.can_flip

    def _padded(self, captions: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """(N, T + 2) ids of captions (N,), of their flipped versions where `flipped` (N,)."""
        lengths = self.lengths[captions]
        words = np.full((len(captions), lengths.max() + 2), PAD, dtype=np.int64)
        words[:, 0] = START
        place = np.arange(words.shape[1] - 1)
        inside = place < lengths[:, None]  # (N, T + 1)
        first = self.offsets[captions] + self.offsets[-1] * flipped
        words[:, 1:][inside] = self.flat[(first[:, None] + place)[inside]]
        words[np.arange(len(captions)), lengths + 1] = np.where(self.cut[captions], PAD, END)
        return words

    def _images(self, examples: np.ndarray, flipped: np.ndarray) -> Tensor:
        if self.rows is not None:
            rows = self.rows[examples]
            if self.flipped_rows is not None:
                rows = np.where(flipped, self.flipped_rows[examples], rows)
            return self.read(rows) if self.read else torch.from_numpy(rows)
        images = [self._image(int(i)) for i in examples]
        return torch.stack([p.flip(-1) if f else p for p, f in zip(images, flipped, strict=True)])  # (I, 3, H, W)

    def _image(self, i: int) -> Tensor:
        path = self.examples[i].path
        if self.augment is None:
            return load_pixels(path, self.image_size, self.frames)
        # One generator per image: the same augmentation in every process and after every restart.
        seed = int(np.random.SeedSequence((self.augment, self.epoch, i)).generate_state(1)[0])

        def view(image: Image, size: int) -> Tensor:  # the same for all frames
            return train_transform(image, size, torch.Generator().manual_seed(seed))

        return load_pixels(path, self.image_size, self.frames, view)


def read_images(
    paths: Sequence[Any], size: int, batch_size: int, workers: int = 0, frames: int = 0
) -> Iterator[tuple[Tensor, list[ImageError | None]]]:
    """Decode images in order, `batch_size` at a time, or as many clips as have that many frames; see `load_batch`."""
    load, batch = partial(load_batch, size=size, frames=frames), clips_per_batch(batch_size, frames)
    workers = needed_workers(workers, -(-len(paths) // batch))
    yield from DataLoader(paths, batch, num_workers=workers, collate_fn=load)  # type: ignore[arg-type]


def load_batch(paths: Sequence[Any], size: int, frames: int = 0) -> tuple[Tensor, list[ImageError | None]]:
    """The G images that can be read, (G, 3, size, size) or (G, frames, 3, size, size) uint8, and their errors.

    There is an error for each path, None for those G; see :func:`captioner.data.clips.load_pixels`.
    """
    images, errors = list[Tensor](), list[ImageError | None]()
    for path in paths:
        try:
            images.append(load_pixels(path, size, frames))
            errors.append(None)
        except ImageError as error:
            errors.append(error)
    return torch.stack(images) if images else torch.empty((0, 3, size, size), dtype=torch.uint8), errors


def clips_per_batch(batch_size: int, frames: int) -> int:
    """The number of clips of `frames` frames (0: images) with as many frames as `batch_size` images; at least 1."""
    return max(1, batch_size // max(1, frames))
