"""The images and captions of the training or the validation split, and their cached features."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, compress, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from captioner.config import IMAGE_BATCH_SIZE, DataConfig, ModelConfig
from captioner.data.addresses import StoredImage
from captioner.data.annotations import Example, read_examples
from captioner.data.clips import album_images
from captioner.data.dataset import read_images
from captioner.data.features import FeatureFile, feature_folder, read_rows, write_features
from captioner.data.samplers import unreadable_image
from captioner.devices import choose_workers
from captioner.errors import UserError, counted
from captioner.models.encoder import Encoder, cached_shape, weights_digest
from captioner.progress import Bar

HELD_AT_ONCE = 256  # rows
CHECKED_NEWER = 8  # images
MIN_COSINE = 0.95  # of a cached feature and the same one fresh; with another JPEG decoder it is 0.99


def extract_features(
    encoder: Encoder,
    paths: Sequence[str | os.PathLike],
    image_size: int,
    batch_size: int,
    workers: int,
    skip_bad: bool,
    frames: int = 0,
    mirrored: bool = False,
) -> Iterator[np.ndarray]:
    """(b, F) or (b, P, F) fp16 blocks of features of `paths`, in order; (b, frames, …) of clips and albums.

    Of an encoder with trained stages they are (b, D) blocks of its maps before them: see :meth:`Encoder.cached`.
    With `skip_bad` the features of an unreadable image are NaN; with `mirrored` the images are flipped left to right.
    """
    device = encoder.mean.device
    shape = _shape(encoder.config, frames)
    for images, errors in read_images(paths, image_size, batch_size, workers, frames):
        good = [error is None for error in errors]
        if not all(good) and not skip_bad:
            raise unreadable_image(next(filter(None, errors)))
        block = np.full((len(errors), *shape), np.nan, dtype=np.float16)
        if len(images):
            with torch.inference_mode():
                images = images.flip(-1) if mirrored else images
                block[good] = encoder.cached(images.to(device)).half().cpu().numpy()
        yield block


def _modified(path: Any) -> float:
    """When a file was changed, in seconds; 0 if it is in a shard, or missing."""
    try:
        return 0.0 if isinstance(path, StoredImage) else os.stat(path).st_mtime
    except OSError:
        return 0.0


def _shape(model: ModelConfig, frames: int) -> tuple[int, ...]:
    """What is cached of one image, or of a clip of several frames; () for nothing."""
    shape = cached_shape(model)
    return (frames, *shape) if frames and shape else shape


class DataSplit:
    """The examples of a split, with the features of their images, or the maps before the first trained stage.

    For a dry run with `sample`: where features are missing, those of a few images are computed, which all then share.
    `device` is where features are computed, by `encoder` in place of the pretrained one of `model`, if it is given.
    """

    table: Tensor | np.ndarray | None = None  # (rows, F), (rows, P, F) … fp16 features, in memory or memory-mapped
    rows: np.ndarray | None = None  # (examples,) the row of each example in the table
    mirrored_rows: np.ndarray | None = None  # (examples,) the row of its mirrored image
    folder: Path | None = None  # of the feature file
    missing, seconds = 0, 0.0  # number of features still to compute after a sample; time of each

    def __init__(
        self,
        name: str,
        data: DataConfig,
        model: ModelConfig,
        sample: bool = False,
        device: str = "cpu",
        encoder: Encoder | None = None,
    ) -> None:
        self.name, self.data, self.model, self.device, self.encoder = name, data, model, device, encoder
        self.examples, skipped, sets = list[Example](), list[str](), data.sets(name)
        for one in sets:
            examples, left_out = read_examples(
                one.captions,
                one.images,
                one.split,
                columns=data.columns,
                listed=one.listed,
                skip_bad=data.skip_bad_images,
                albums=model.frames > 0,
                encoding=data.encoding,
            )
            self.examples += examples
            skipped += left_out
        captions = ", ".join(one.captions for one in sets)
        self.mirrors = name == "train" and data.horizontal_flip
        bad = np.zeros(len(self.examples), dtype=bool)
        if data.augment and model.trainable_layers == 0 and not model.custom_encoder:
            raise UserError("--data.augment needs an encoder with trained stages: --model.trainable_layers is 0")
        cached = bool(_shape(model, model.frames)) and not data.augment
        if name == "train" and not cached and not data.augment:
            kind = "clips" if model.frames else model.encoder
            rank_zero_only(print)(f"the maps of {kind} are not cached: every image is decoded in every epoch")
        if cached:
            bad = self._open_features("+".join(Path(one.captions).stem for one in sets)[:60], sample)
        elif data.skip_bad_images and not sample:
            bad = self._unreadable()
        skipped += [f"{example.path}: cannot be read" for example in compress(self.examples, bad)]
        self.examples = [*compress(self.examples, ~bad)]
        if skipped:
            rank_zero_only(print)(f"{captions}: {len(skipped)} skipped, e.g. {skipped[0]}", file=sys.stderr)
        if not self.examples:
            raise UserError(f"{captions} has no usable image")

    def subsample(self, fraction: float, seed: int) -> None:
        """Keep this share of the examples, at least one. With one seed, a smaller share is part of a larger one."""
        order = np.random.default_rng(seed).permutation(len(self.examples))
        kept = np.sort(order[: math.ceil(fraction * len(order))])
        self.examples = [self.examples[i] for i in kept]
        self.rows = None if self.rows is None else self.rows[kept]
        self.mirrored_rows = None if self.mirrored_rows is None else self.mirrored_rows[kept]

    @property
    def nbytes(self) -> int:
        """The size of the table, also of one that is still to be computed; 0 if there is none."""
        return 0 if self.table is None else self.table[:1].nbytes * (self.missing or len(self.table))

    @property
    def read(self) -> Callable[[np.ndarray], Tensor] | None:
        """Reads the features of rows (I,) from the file; None if the table is in memory, or there is none."""
        if not isinstance(self.table, np.memmap):
            return None
        return partial(read_rows, self.table, pinned=self.device == "cuda")

    def hold(self, device: torch.device) -> None:
        """Copy the table to the memory of a device, a part at a time."""
        if self.table is not None:
            held = torch.empty(self.table.shape, dtype=torch.float16, device=device)
            for first in range(0, len(held), HELD_AT_ONCE):
                rows = np.arange(first, min(first + HELD_AT_ONCE, len(held)))
                part: Any = self.read(rows) if self.read else self.table[rows]
                held[first : first + HELD_AT_ONCE] = part
            self.table = held

    def repeat_captions(self, number: int) -> bool:
        """Repeat the captions of examples with fewer, in turn, up to this number; whether there were any.

        >>> "".join(islice(cycle("ab"), 5))
        'ababa'
        """
        few = [len(example.captions) < number for example in self.examples]
        for i in np.flatnonzero(few):
            captions = islice(cycle(self.examples[i].captions), number)
            self.examples[i] = replace(self.examples[i], captions=tuple(captions))
        return any(few)

    def check_features(self, encoder: Encoder) -> None:
        """Recompute the features of a few images; raise UserError if the cached ones differ.

        The first image, the last, and up to CHECKED_NEWER that were changed after their features had been computed.
        """
        if self.folder is None or self.table is None or self.rows is None:
            return
        computed = (self.folder / "index.json").stat().st_mtime
        newer = [i for i, example in enumerate(self.examples) if _modified(example.path) > computed]
        for i in dict.fromkeys([0, len(self.examples) - 1, *newer[:CHECKED_NEWER]]):
            example, cached = self.examples[i], self.table[self.rows[i]]
            options = (self.model.image_size, 1, 0, True, self.model.frames)
            fresh = next(extract_features(encoder, [example.path], *options))
            a, b = (torch.from_numpy(np.asarray(each, np.float64)).flatten() for each in (fresh, cached))
            cosine = float(torch.cosine_similarity(a, b, dim=0))
            if a.isfinite().all() and not cosine >= MIN_COSINE:  # not finite if the image is missing
                raise UserError(
                    f"the features of {example.name} in {self.folder} are not those of "
                    f"{self.model.encoder} (cosine {cosine:.2f}, expected {MIN_COSINE} to 1): delete the folder to "
                    "compute them again"
                )

    def _open_features(self, label: str, sample: bool) -> np.ndarray:
        """Open the features, computed first if they are missing; (examples,) bool: the images that cannot be read."""
        data, model = self.data, self.model
        paths, names = [e.path for e in self.examples], [e.name for e in self.examples]
        if self.mirrors:  # the file has the rows of all images, then those of all mirrored images
            names += [f"{name} mirrored" for name in names]
        fingerprint = self._fingerprint()
        label = f"{label}-{model.encoder.replace(':', '-')}-{model.image_size}"
        folder = feature_folder(Path(data.feature_cache), label, fingerprint)
        workers = choose_workers(data.workers, self.device)
        options = (model.image_size, IMAGE_BATCH_SIZE, workers, data.skip_bad_images, model.frames)
        if sample and not folder.exists():
            return self._sample_features(paths, len(names), options)

        def rows_from(first: int) -> Iterator[np.ndarray]:
            encoder = (self.encoder or Encoder(model)).to(self.device)
            yield from extract_features(encoder, paths[first:], *options)
            if self.mirrors:
                yield from extract_features(encoder, paths[max(0, first - len(paths)) :], *options, mirrored=True)

        shape = _shape(model, model.frames)
        write_features(folder, fingerprint, names, shape, rows_from)
        file = FeatureFile.open(folder, fingerprint, shape)
        bad = file.unreadable[: len(paths)]
        if bad.any() and not data.skip_bad_images:
            raise unreadable_image(f"{paths[int(bad.argmax())]} and {int(bad.sum()) - 1} more images cannot be read")
        self.folder, self.table, self.rows = folder, file.rows, np.flatnonzero(~bad)
        self.mirrored_rows = self.rows + len(paths) if self.mirrors else None
        return bad

    def _fingerprint(self) -> dict[str, str | int]:
        """The inputs of the features: encoder, transform, and names and sizes of the images."""
        model, digest = self.model, hashlib.sha256()
        for example in self.examples:
            path, name = example.path, example.name
            files = [(name, path)]
            if model.frames and not isinstance(path, StoredImage) and path.is_dir():
                files = [(os.path.join(name, inner.name), inner) for inner in album_images(path)]
            for name, file in files:
                size = file.version if isinstance(file, StoredImage) else os.stat(file).st_size
                digest.update(f"{name}\0{size}\0".encode())
        optional = {"grid": model.grid, "frames": model.frames, "mirrored": "after the others" if self.mirrors else ""}
        if model.trainable_layers:  # maps, whatever the grid
            optional |= {"grid": 0, "trained stages": model.trainable_layers}
        if self.encoder is not None:
            optional["fine-tuned stages"] = self.encoder.digest()
        return {
            "encoder": model.encoder,
            "weights": weights_digest(model.encoder),
            "transform": f"whole image, bicubic, {model.image_size} px, second look {model.second_size} px",
            "dtype": "float16",
            "images": digest.hexdigest()[:16],
            **{name: value for name, value in optional.items() if value},
        }

    def _sample_features(self, paths: Sequence[Any], rows: int, options: Any) -> np.ndarray:
        """Compute the features of a few images and use them for all, so that none counts as unreadable."""
        few = paths[:: -(-len(paths) // (3 * IMAGE_BATCH_SIZE))]
        encoder = (self.encoder or Encoder(self.model)).to(self.device)
        blocks, times = [], []
        for block in extract_features(encoder, few, *options):
            blocks.append(block)
            times.append(time.perf_counter())
        table = np.concatenate(blocks)
        self.missing = rows
        self.seconds = (times[-1] - times[0]) / max(1, len(table) - len(blocks[0]))  # the first block warms up
        table = table[~np.isnan(table.reshape(len(table), -1)[:, 0])]
        if not len(table):
            raise UserError(f"none of {counted(len(few), 'image')} can be read, such as {few[0]}")
        self.table, self.rows = torch.from_numpy(table), np.arange(len(paths)) % len(table)
        self.mirrored_rows = self.rows if self.mirrors else None
        return np.zeros(len(paths), dtype=bool)

    def _unreadable(self) -> np.ndarray:
        """(examples,) bool: the images that cannot be decoded, for a trained encoder, which has no feature file."""
        paths = [example.path for example in self.examples]
        workers = choose_workers(self.data.workers, self.device)
        batches = read_images(paths, self.model.image_size, IMAGE_BATCH_SIZE, workers, self.model.frames)
        errors = chain.from_iterable(errors for _, errors in batches)
        bar = Bar(errors, "checking images", len(paths), batch=IMAGE_BATCH_SIZE)
        return np.array([error is not None for error in bar], dtype=bool)
