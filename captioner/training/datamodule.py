"""Captioned images in, loaders out: reads the annotations, counts the vocabulary, computes or opens the features."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from captioner.config import IMAGE_BATCH_SIZE, DataConfig, ModelConfig
from captioner.data.annotations import gc_paused, read_examples
from captioner.data.clips import album_images
from captioner.data.dataset import Batch, CaptionDataset, read_images
from captioner.data.features import FeatureFile, feature_folder, write_features
from captioner.data.flip_captions import flip_caption
from captioner.data.samplers import BucketSampler, CaptionLoader, ResumableLoader, unreadable_image
from captioner.data.shards import Member
from captioner.data.vocabulary import END, SPECIAL, TokenizedCaptions, Vocabulary, tokenize_all
from captioner.devices import best_device, choose_workers
from captioner.errors import UserError
from captioner.metrics.ptb_tokenizer import ptb_tokenize
from captioner.models.checkpoint import read_vocabulary
from captioner.models.encoder import Encoder, feature_shape, weights_digest
from captioner.training.rewards import Rewards

ALIKE = 0.95  # least cosine of a feature in the file and of the same image now; other decoders of JPEG give 0.99
VALIDATION_IMAGES = 64  # decoded together; times the beam width they fill a matrix product


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
    """(b, F) or (b, P, F) fp16 blocks of features of `paths`, in order; NaN for an unreadable one where `skip_bad`.

    With `frames` (b, frames, F) or (b, frames, P, F): each path is a clip or an album. With `mirrored`, of the
    images as a mirror shows them.

    Raises:
        UserError: an image cannot be read, and not `skip_bad`.
    """
    device = encoder.mean.device
    shape = (frames, *encoder.feature_shape) if frames else encoder.feature_shape
    for images, errors in read_images(paths, image_size, batch_size, workers, frames):
        bad = [error for error in errors if error is not None]
        if bad and not skip_bad:
            raise unreadable_image(bad[0])
        block = np.full((len(errors), *shape), np.nan, dtype=np.float16)
        if len(images):
            with torch.inference_mode():
                good = [error is None for error in errors]
                images = images.flip(-1) if mirrored else images
                block[good] = encoder(images.to(device, non_blocking=True)).half().cpu().numpy()
        yield block


class Split:
    """The training or the validation examples, with the features of their images where the encoder is frozen.

    Attributes:
        examples: the images that can be read, with their captions.
        table: (rows, F), (rows, P, F), (rows, S, F) … fp16 features, in memory or as a map; None where the encoder is
            trained.
        rows: (examples,) the row of each example in the table; None where the encoder is trained.
        folder: of the features; None where there are none, or a `sample` of them.
        mirrored_rows: (examples,) the row of the mirrored image; None unless such are trained on.
        missing: rows of features that were not there, where a `sample` was taken: all images then share the features
            of the few, of which each took so many `seconds` and `bytes`.
    """

    missing, seconds, bytes = 0, 0.0, 0

    def __init__(self, name: str, data: DataConfig, model: ModelConfig, sample: bool = False) -> None:
        annotations = getattr(data, name)
        if annotations is None:
            raise UserError(
                f"--data.{name} is needed: the captions of the {name} split, and for most formats "
                f"--data.{name}_images, the folder of its images"
            )
        self.examples, skipped = read_examples(
            annotations,
            getattr(data, f"{name}_images"),
            getattr(data, f"{name}_split"),
            columns=data.columns,
            listed=getattr(data, f"{name}_list"),
            skip_bad=data.skip_bad_images,
            albums=model.frames > 0,
        )
        self.table: Tensor | np.ndarray | None = None
        self.rows: np.ndarray | None = None
        self.mirrored_rows: np.ndarray | None = None
        self.folder: Path | None = None
        self.mirrors, self.sample = name == "train" and data.horizontal_flip, sample
        if model.trainable_layers == 0:
            skipped += self._use_features(annotations, data, model)
        elif data.skip_bad_images and not sample:
            skipped += self._drop_unreadable(data, model)
        if skipped:
            rank_zero_only(print)(f"{annotations}: {len(skipped)} skipped, e.g. {skipped[0]}", file=sys.stderr)
        if not self.examples:
            raise UserError(f"{annotations} has no usable image")

    def keep(self, fraction: float, seed: int) -> None:
        """Only so large a share of the examples, one at least, that the seed chooses; a smaller share is part of it."""
        order = np.random.default_rng(seed).permutation(len(self.examples))
        kept = np.sort(order[: math.ceil(fraction * len(order))])
        self.examples = [self.examples[i] for i in kept]
        self.rows = None if self.rows is None else self.rows[kept]
        self.mirrored_rows = None if self.mirrored_rows is None else self.mirrored_rows[kept]

    def _use_features(self, annotations: str, data: DataConfig, model: ModelConfig) -> list[str]:
        paths = [example.path for example in self.examples]
        names = [example.name for example in self.examples]
        images: list[str] = []
        for path, name in zip(paths, names, strict=True):
            if isinstance(path, Member):
                sizes = [(name, path.size)]
            elif model.frames and path.is_dir():
                sizes = [(os.path.join(name, inner.name), inner.stat().st_size) for inner in album_images(path)]
            else:
                sizes = [(name, os.stat(path).st_size)]
            images += [f"{one}\0{size}\0" for one, size in sizes]
        fingerprint: dict[str, str | int] = {
            "encoder": model.encoder,
            "weights": weights_digest(model.encoder),
            "transform": f"whole image, bicubic, {model.image_size} px, second look {model.second_size} px",
            "dtype": "float16",
            "images": hashlib.sha256("".join(images).encode()).hexdigest()[:16],
        }
        if model.grid:
            fingerprint["grid"] = model.grid
        if model.frames:
            fingerprint["frames"] = model.frames
        if self.mirrors:  # the file has the rows of all images, then those of all mirrored images
            fingerprint["mirrored"] = "after the others"
            names += [f"{name} mirrored" for name in names]
        label = f"{Path(annotations).stem}-{model.encoder.replace(':', '-')}-{model.image_size}"
        folder = feature_folder(Path(data.feature_cache), label, fingerprint)

        device = best_device()
        workers = choose_workers(data.workers, device)
        options = (model.image_size, IMAGE_BATCH_SIZE, workers, data.skip_bad_images, model.frames)
        if self.sample and not folder.exists():
            return self._sample_features(paths, len(names), model, options)

        def rows_from(first: int) -> Iterator[np.ndarray]:
            encoder = Encoder(model).to(device)
            yield from extract_features(encoder, paths[first:], *options)
            if self.mirrors:
                yield from extract_features(encoder, paths[max(0, first - len(paths)) :], *options, mirrored=True)

        shape = (model.frames, *feature_shape(model)) if model.frames else feature_shape(model)
        write_features(folder, fingerprint, names, shape, rows_from)
        self.folder = folder
        file = FeatureFile.open(folder, fingerprint, shape)
        bad = file.unreadable[: len(paths)]
        if bad.any() and not data.skip_bad_images:
            raise unreadable_image(f"{paths[int(bad.argmax())]} and {int(bad.sum()) - 1} more images cannot be read")
        self.table, self.rows = file.rows, np.flatnonzero(~bad)
        if self.mirrors:
            self.mirrored_rows = self.rows + len(paths)
        if file.rows.nbytes <= data.feature_memory * 2**30:
            self.table = torch.from_numpy(np.array(file.rows))
        return self._drop(bad)

    def check_features(self, encoder: Encoder, model: ModelConfig) -> None:
        """Compute the features of the first image again, and compare them with those in the file.

        Raises:
            UserError: they are another network's, or another image's.
        """
        if self.folder is None or self.table is None or self.rows is None:
            return
        example, there = self.examples[0], self.table[self.rows[0]]
        again = next(extract_features(encoder, [example.path], model.image_size, 1, 0, True, model.frames))
        a, b = (np.asarray(each, np.float64).ravel() for each in (again, there))
        with np.errstate(all="ignore"):  # features of nothing but zeros are like no others
            alike = float(a @ b / np.sqrt(a @ a * (b @ b)))
        if np.isfinite(a).all() and not alike >= ALIKE:  # the image may not be there any more
            raise UserError(
                f"the features of {example.name} in {self.folder} are not those of {model.encoder} (cosine "
                f"{alike:.2f}, expected {ALIKE} to 1): delete the folder to have them made again"
            )

    def _sample_features(self, paths: Sequence[Any], rows: int, model: ModelConfig, options: Any) -> list[str]:
        """The features of a few images stand for those of all; see `missing`."""
        few = paths[:: -(-len(paths) // (3 * IMAGE_BATCH_SIZE))]
        encoder = Encoder(model).to(best_device())
        blocks, times = [], []
        for block in extract_features(encoder, few, *options):
            blocks.append(block)
            times.append(time.perf_counter())
        table = np.concatenate(blocks)
        timed = max(1, len(table) - len(blocks[0]))  # the first block warms up
        self.missing, self.seconds = rows, (times[-1] - times[0]) / timed
        table = table[~np.isnan(table.reshape(len(table), -1)[:, 0])]
        if not len(table):
            raise UserError(f"{few[0]} and {len(few) - 1} more images cannot be read")
        self.bytes = table[0].nbytes
        self.table, self.rows = torch.from_numpy(table), np.arange(len(paths)) % len(table)
        self.mirrored_rows = self.rows if self.mirrors else None
        return []

    def _drop_unreadable(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Decode every image once: with a trained encoder nothing else would find the bad ones before they stop."""
        paths = [example.path for example in self.examples]
        workers = choose_workers(data.workers, best_device())
        batches = read_images(paths, model.image_size, IMAGE_BATCH_SIZE, workers, model.frames)
        bar = tqdm(total=len(paths), unit="image", desc="checking images", disable=None)
        bad = []
        with bar:
            for _, errors in batches:
                bad += [error is not None for error in errors]
                bar.update(len(errors))
        return self._drop(np.array(bad))

    def _drop(self, bad: np.ndarray) -> list[str]:
        dropped = [f"{e.path}: cannot be read" for e, is_bad in zip(self.examples, bad, strict=True) if is_bad]
        self.examples = [e for e, is_bad in zip(self.examples, bad, strict=True) if not is_bad]
        return dropped


class CaptionData(pl.LightningDataModule):
    """Training and validation captions; see :class:`captioner.config.DataConfig`.

    Args:
        data, model: the options.
        seed: of the order of the batches and the augmentation.
        by_image: batches are of images with all of their captions, also where captions alone would be faster.
        sample: where features are missing, compute those of a few images for a first look; see :class:`Split`.

    Attributes:
        train, val: the splits.
        vocabulary: counted on the training split, or another checkpoint's.
        together: captions in a batch of all processes, where a resumed run has begun with so many.
    """

    together: int | None = None

    @gc_paused()
    def __init__(
        self, data: DataConfig, model: ModelConfig, seed: int = 0, by_image: bool = False, sample: bool = False
    ) -> None:
        super().__init__()
        self.data, self.model, self.seed = data, model, seed
        self.train, self.val = Split("train", data, model, sample), Split("val", data, model, sample)
        if data.fraction < 1:
            self.train.keep(data.fraction, seed)
        captions = (caption for example in self.train.examples for caption in example.captions)
        tokenized = tokenize_all(captions, data.level)
        if data.vocabulary is not None:
            self.vocabulary = read_vocabulary(data.vocabulary)
            if self.vocabulary.level != data.level:
                raise UserError(f"{data.vocabulary} is of --data.level {self.vocabulary.level}, not {data.level}")
        else:
            self.vocabulary = Vocabulary.from_tokenized(tokenized, data.min_count, data.level)
        if len(self.vocabulary) <= len(SPECIAL):
            raise UserError(
                f"no word of {data.train} is seen {data.min_count} times: lower --data.min_count, which counts words"
            )
        encoded = self.train.table is None
        # What is done once an image, and not once a caption, is worth doing for all of its captions together.
        by_image = by_image or encoded or model.grid > 0 or model.frames > 0
        self.train_set = self._dataset(self.train, by_image, seed, tokenized)
        self.val_set = self._dataset(self.val, by_image=True)

    def check_features(self) -> None:
        """See whether the features are those of the encoder, by the first image of each split.

        Raises:
            UserError: they are not.
        """
        if self.train.folder is not None or self.val.folder is not None:
            encoder = Encoder(self.model)
            for split in (self.train, self.val):
                split.check_features(encoder, self.model)

    @gc_paused()
    def references(self) -> list[list[list[str]]]:
        """The words of the captions of each validation image, as the metrics see them."""
        return [[ptb_tokenize(caption) for caption in example.captions] for example in self.val.examples]

    def rewards(self, bleu_weight: float) -> Rewards:
        """What captions of the training images are worth in self-critical training."""
        words = [[self.vocabulary.split(caption) for caption in e.captions] for e in self.train.examples]
        if self.data.horizontal_flip:
            words += [[flip_caption(caption) or caption for caption in captions] for captions in words]
        most = self.data.max_length
        references = [[self.vocabulary.encode(caption)[:most] for caption in captions] for captions in words]
        return Rewards(references, END, bleu_weight)

    def train_sampler(self, rank: int = 0, world: int = 1) -> BucketSampler:
        """The batches of process `rank` of `world`; its length is the number of them in an epoch."""
        self.together = self.together or self.data.batch_size * world
        lengths, batch_size = self.train_set.lengths, self.together
        if self.train_set.by_image:  # as many images as have about that many captions, in any order
            per_image = len(lengths) / len(self.train_set)
            lengths = np.zeros_like(lengths, shape=len(self.train_set))
            batch_size = max(1, round(batch_size / per_image))
        return BucketSampler(lengths, batch_size, self.seed, rank, world)

    def state_dict(self) -> dict[str, Any]:
        """What a run keeps when it is resumed on another number of processes: its batches, and so its steps."""
        return {"together": self.together}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.together = state_dict["together"]

    def train_dataloader(self) -> DataLoader:
        """Captions bucketed by length from pooled features, else all captions of an image together."""
        return self._loader(self.train_set, self.train_sampler(*self._place()), ResumableLoader)

    def val_dataloader(self) -> DataLoader:
        """Every image once, in one of the processes, with all of its captions."""
        rank, world = self._place()
        mine = list(range(len(self.val.examples)))[rank::world]
        batches = [mine[i : i + VALIDATION_IMAGES] for i in range(0, len(mine), VALIDATION_IMAGES)]
        return self._loader(self.val_set, batches, CaptionLoader)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _dataset(
        self, split: Split, by_image: bool, augment: int | None = None, tokenized: TokenizedCaptions | None = None
    ) -> CaptionDataset:
        return CaptionDataset(
            split.examples,
            self.vocabulary,
            self.data.max_length,
            self.model.image_size,
            split.rows,
            None if isinstance(split.table, Tensor) else split.table,
            augment,
            self.data.horizontal_flip,
            by_image,
            self.model.frames,
            split.mirrored_rows,
            tokenized,
        )

    def _loader(self, dataset: CaptionDataset, batches: Any, kind: type[DataLoader]) -> DataLoader:
        workers = choose_workers(self.data.workers, best_device()) if dataset.rows is None else 0
        pin = torch.cuda.is_available()
        return kind(dataset, None, sampler=batches, num_workers=workers, pin_memory=pin)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Row numbers become features, looked up on the device, where the table moves with the first batch."""
        if batch.images.dim() != 1:
            return batch
        split = self.train if self.trainer is None or self.trainer.training else self.val
        assert isinstance(split.table, Tensor)
        split.table = split.table.to(batch.images.device)
        return batch._replace(images=split.table[batch.images])
