"""The Lightning data module: splits, vocabulary and loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from captioner import metrics
from captioner.config import MAX_LENGTH, DataConfig, ModelConfig
from captioner.data.annotations import gc_paused, read_examples
from captioner.data.dataset import Batch, CaptionDataset
from captioner.data.flip_captions import are_english, flip_caption
from captioner.data.samplers import BucketSampler, CaptionLoader, ResumableLoader
from captioner.data.vocabulary import (
    END,
    NO_SPACES,
    SPECIAL,
    UNK,
    TokenizedCaptions,
    Vocabulary,
    has_no_spaces,
    tokenize_all,
)
from captioner.devices import choose_workers, free_memory, gib, held_in_memory, needed_workers
from captioner.errors import UserError, counted
from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references, tokenizer_of
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import parse_header, read_header
from captioner.models.encoder import Encoder
from captioner.training.rewards import Rewards
from captioner.training.split import DataSplit

EXAMPLES = 6  # words in a message
VALIDATION_BATCH = 64  # images decoded together; times the beam width they fill a matrix product
ADVICE = "give the Trainer EvaluationData(task.model, captions, images)"


class CaptionData(pl.LightningDataModule):
    """Training and validation captions; see :class:`captioner.config.DataConfig`.

    Args:
        seed: of the order of the batches and the augmentation.
        by_image: whether a batch has all captions of its images, also where batches of captions alone would be faster.
        sample: for a dry run; see :class:`DataSplit`.
        device: of the training, where features are computed too.
        encoder: frozen, whose features are cached, in place of the pretrained one of `model`.
        start: the checkpoint whose vocabulary ``data.vocabulary`` keeps or extends; None: the words are counted.

    Attributes:
        train, val: the splits.
        vocabulary: counted on the training split, or that of another checkpoint.
        lacking: how often words occur in the training captions that the vocabulary lacks, most frequent first.
    """

    @gc_paused()
    def __init__(
        self,
        data: DataConfig,
        model: ModelConfig,
        seed: int = 0,
        by_image: bool = False,
        sample: bool = False,
        device: str = "cpu",
        encoder: Encoder | None = None,
        start: str | os.PathLike | None = None,
    ) -> None:
        super().__init__()
        self.data, self.model, self.seed, self.device, self.encoder = data, model, seed, device, encoder
        self.train, self.val = (DataSplit(name, data, model, sample, device, encoder) for name in ("train", "val"))
        every = (caption for example in self.train.examples for caption in example.captions)
        if data.horizontal_flip and not data.flip_words and not are_english(every):
            raise UserError(
                "--data.horizontal_flip exchanges left and right in English captions alone, and these are in another "
                "language: name the pairs of words, such as --data.flip_words links:rechts"
            )
        if data.fraction < 1:
            self.train.subsample(data.fraction, seed)
        captions = (caption for example in self.train.examples for caption in example.captions)
        tokenized = tokenize_all(captions, data.level)
        counted = Vocabulary.from_tokenized(tokenized, data.min_count, data.level)
        self.source = None if data.vocabulary == "count" else data.vocabulary_file or start
        self.vocabulary = counted if self.source is None else _vocabulary_of(self.source, data.level)
        if data.vocabulary == "extend":
            self.vocabulary = self.vocabulary.extended(counted)
        self.lacking = self.vocabulary.lacking(tokenized)
        if len(self.vocabulary) <= len(SPECIAL):
            raise UserError(f"no word of --data.train is seen {data.min_count} times: lower --data.min_count")
        self.longest = int(tokenized.lengths.max())
        # Work per image (encoder, attention keys, frames) is then done once for all captions of an image.
        by_image = by_image or bool(model.custom_encoder) or max(model.trainable_layers, model.grid, model.frames) > 0
        repeated = self.train.repeat_captions(data.captions_per_image)
        self.train_set = self._dataset(self.train, by_image, seed, None if repeated else tokenized)
        self.val_set = self._dataset(self.val, by_image=True)

    def check_features(self) -> None:
        """Raise UserError unless the cached features of the first image of each split are those of the encoder."""
        if self.train.folder is not None or self.val.folder is not None:
            encoder = self.encoder.cpu() if self.encoder is not None else Encoder(self.model)
            for split in (self.train, self.val):
                split.check_features(encoder)

    @property
    def max_length(self) -> int:
        """How many words a caption may have: as many as the longest one of the training, at least MAX_LENGTH."""
        return max(MAX_LENGTH, int(self.train_set.lengths.max()))

    def notes(self) -> list[str]:
        """What to know about the training captions, a line each, with what to do about it."""
        lines, unit = [], "character" if self.data.level == "char" else "word"
        if number := int(self.train_set.cut.sum()):
            total, most = len(self.train_set.cut), f"more than {counted(self.data.max_length, unit)}"
            lines.append(
                f"{number:,} of {total:,} training captions have {most} and are cut, without END: "
                f"--data.max_length {self.longest} keeps them whole"
            )
        if self.lacking and self.source is not None:
            lines.append(self._lost_words())
        captions = (caption for example in self.train.examples for caption in example.captions)
        if self.data.level == "word" and has_no_spaces(captions):
            lines.append(NO_SPACES)
        return lines

    def _lost_words(self) -> str:
        """What the captions lose by a vocabulary that was not counted on them, with what to do about it."""
        known = int((self.train_set.flat != UNK).sum())
        share = (len(self.train_set.flat) - known) / len(self.train_set.flat)
        unit = "character" if self.data.level == "char" else "word"
        examples = ", ".join(list(self.lacking)[:EXAMPLES]) + (" …" if len(self.lacking) > EXAMPLES else "")
        advice = "--data.vocabulary extend adds those that are seen --data.min_count times"
        if self.data.vocabulary == "extend":
            advice = f"a --data.min_count below {self.data.min_count} adds more"
        return (
            f"the vocabulary of {self.source} lacks {counted(len(self.lacking), unit)} of the training captions, "
            f"{share:.1%} of their text ({examples}): {advice}"
        )

    @gc_paused()
    def references(self) -> list[list[list[str]]]:
        """Tokens of the captions of each validation image, as the metrics need them."""
        captions = [example.captions for example in self.val.examples]
        return tokenize_references(captions, tokenizer_of(self.vocabulary.level))

    def fixed_cider(self, references: list[list[list[str]]]) -> str | None:
        """Why CIDEr is 0 for any captions of the validation images, whose `references` these are; None if it is not."""
        captions = [
            self.vocabulary.decode(i for i in self.vocabulary.encode(self.vocabulary.split(e.captions[0])) if i != UNK)
            for e in self.val.examples
        ]
        if metrics.cider_d(references, TOKENIZERS[tokenizer_of(self.vocabulary.level)](captions)).any():
            return None
        if len(references) == 1:
            return "there is one validation image, and CIDEr weighs words by the images that have them"
        if any(captions):
            return "all validation images have the same captions, so that CIDEr gives their words no weight"
        return "no word of the validation captions is in the vocabulary"

    def rewards(self, bleu_weight: float) -> Rewards:
        """The rewards of self-critical training: one entry for each training image, then for each mirrored one."""
        words = [[self.vocabulary.split(caption) for caption in e.captions] for e in self.train.examples]
        if self.data.horizontal_flip:
            pairs = self.data.flip_pairs
            words += [[flip_caption(caption, pairs) or caption for caption in captions] for captions in words]
        references = [[self.vocabulary.encode(c) for c in captions] for captions in words]
        return Rewards(references, END, bleu_weight, self.data.max_length)

    def train_sampler(self, rank: int = 0, world: int = 1) -> BucketSampler:
        """The share of process `rank` of `world` in the batches; the length is the number of batches in an epoch."""
        lengths, batch_size = self.train_set.lengths, self.data.batch_size
        if self.train_set.by_image:  # as many images as have about that many captions, in any order
            per_image = len(lengths) / len(self.train_set)
            lengths = np.zeros_like(lengths, shape=len(self.train_set))
            batch_size = max(1, round(batch_size / per_image))
        if batch_size < world:
            item = "image" if self.train_set.by_image else "caption"
            what = f"batches of {counted(batch_size, item)} cannot be divided among {world} devices"
            raise UserError(f"data.batch_size is {self.data.batch_size}: {what}")
        return BucketSampler(lengths, batch_size, self.seed, rank, world)

    def setup(self, stage: str) -> None:
        """Hold the features in the memory of the device, as far as they fit, and say where they are."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        sharing = 1 if device.type == "cuda" else self.trainer.num_devices
        splits = [(self.train, self.train_set), (self.val, self.val_set)]
        sizes = [split.nbytes for split, _ in splits]
        held = held_in_memory(sizes, self.data.feature_memory, free_memory(device), sharing)
        memory = "GPU memory" if device.type == "cuda" else "memory"
        places = []
        for (split, dataset), fits in zip(splits, held, strict=True):
            places.append(f"{split.name} {gib(split.nbytes)} {f'in {memory}' if fits else 'read from the disk'}")
            if fits or isinstance(split.table, Tensor):
                split.hold(device)
                dataset.read = split.read
        if any(sizes):
            rank_zero_only(print)(f"features: {', '.join(places)}")

    def test_dataloader(self) -> DataLoader:
        """UserError: these data are for training."""
        raise UserError(f"CaptionData has no test images: {ADVICE}")

    def predict_dataloader(self) -> DataLoader:
        """UserError: these data are for training."""
        raise UserError(f"CaptionData has no images to predict: {ADVICE}")

    def train_dataloader(self) -> DataLoader:
        """Captions bucketed by length if their features are pooled, else all captions of an image together."""
        return self._loader(self.train_set, self.train_sampler(*rank_and_world(self.trainer)), ResumableLoader)

    def val_dataloader(self) -> DataLoader:
        """Batches of images with all of their captions: as many in each process, each in one of them.

        DDP waits for all processes in a batch, and Lightning leaves out a validation of no batch. Of fewer images than
        processes, some batches are therefore in several of them.
        """
        mine = images_by_process(len(self.val.examples), *rank_and_world(self.trainer))
        return self._loader(self.val_set, mine, CaptionLoader)

    def validation_batches(self, device: torch.device) -> Iterator[Batch]:
        """All batches of :meth:`val_dataloader`, whatever the number of processes, on a device."""
        for batch in self._loader(self.val_set, images_by_process(len(self.val.examples), 0, 1), CaptionLoader):
            yield self.on_after_batch_transfer(self.transfer_batch_to_device(batch, device, 0), 0)

    def _dataset(
        self, split: DataSplit, by_image: bool, augment: int | None = None, tokenized: TokenizedCaptions | None = None
    ) -> CaptionDataset:
        return CaptionDataset(
            split.examples,
            self.vocabulary,
            self.data.max_length,
            self.model.image_size,
            split.rows,
            split.read,
            augment,
            self.data.horizontal_flip,
            by_image,
            self.model.frames,
            split.mirrored_rows,
            self.data.flip_pairs,
            tokenized,
        )

    def _loader(self, dataset: CaptionDataset, batches: Any, kind: type[DataLoader]) -> DataLoader:
        workers = choose_workers(self.data.workers, self.device) if dataset.rows is None else 0
        workers = needed_workers(workers, len(batches))
        loader = kind(dataset, None, sampler=batches, num_workers=workers, pin_memory=self.device == "cuda")
        if dataset.read is not None:
            loader.ahead = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Look up the features of row numbers in the table on the device."""
        if batch.images.dim() != 1:
            return batch
        split = self.train if self.trainer is None or self.trainer.training else self.val
        assert isinstance(split.table, Tensor)
        split.table = split.table.to(batch.images.device)
        return batch._replace(images=split.table[batch.images])


def _vocabulary_of(path: str | os.PathLike, level: str) -> Vocabulary:
    _, vocabulary = parse_header(path, read_header(path))
    if vocabulary.level != level:
        raise UserError(
            f"{path} is of --data.level {vocabulary.level}, not {level}: leave it out, or have the words counted again "
            "from the training captions by --data.vocabulary count"
        )
    return vocabulary


class EvaluationData(pl.LightningDataModule):
    """Captioned images to test a model on: for the Trainer's ``test``, ``validate`` and ``predict``.

    They are decoded as the model needs them; no features are cached. Captions are scored as in a validation.

    Args:
        model: what is tested, such as ``task.model``.
        captions, images, split: as for :func:`captioner.data.annotations.read_examples`.
        workers: processes that decode images.
    """

    def __init__(
        self, model: Captioner, captions: str, images: str | None = None, split: str = "test", workers: int = 0
    ) -> None:
        super().__init__()
        self.examples, _ = read_examples(captions, images, split, albums=model.frames > 0)
        if not self.examples:
            raise UserError(f"{captions} has no image of the split {split}")
        self.level, self.workers, longest = model.vocabulary.level, workers, DataConfig.max_length
        self.dataset = CaptionDataset(
            self.examples, model.vocabulary, longest, model.image_size, by_image=True, frames=model.frames
        )

    def references(self) -> list[list[list[str]]]:
        """Tokens of the captions of each image, as the metrics need them."""
        return tokenize_references([example.captions for example in self.examples], tokenizer_of(self.level))

    def test_dataloader(self) -> DataLoader:
        """Batches of images with all of their captions: as many in each process, each in one of them."""
        mine = images_by_process(len(self.examples), *rank_and_world(self.trainer))
        return CaptionLoader(self.dataset, None, sampler=mine, num_workers=self.workers)

    val_dataloader = predict_dataloader = test_dataloader


def rank_and_world(trainer: pl.Trainer | None) -> tuple[int, int]:
    """The number of this process and of all processes; 0 and 1 without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def images_by_process(images: int, rank: int, world: int) -> list[list[int]]:
    """The batches of process `rank` of `world`, as many as those of the others."""
    number = -(-images // (VALIDATION_BATCH * world)) * world
    batches = [part for part in np.array_split(range(images), number) if len(part)]
    return [batches[i % len(batches)].tolist() for i in range(rank, number, world)]
