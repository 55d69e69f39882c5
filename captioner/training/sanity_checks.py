"""Warnings about a training that runs but cannot be trusted: shared images, unknown words, one caption for all."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from captioner.data.addresses import is_address
from captioner.data.annotations import Example
from captioner.data.images import open_file
from captioner.data.shards import Member
from captioner.data.vocabulary import UNK
from captioner.errors import UserError
from captioner.training.datamodule import CaptionData

MAX_SAME = 0.5  # share of validation images with the same caption
MIN_COVERAGE = 0.9  # share of the words of the validation captions that the vocabulary has
MAX_COMPARED = 500  # validation images whose bytes are compared with training images of the same size
MAX_CANDIDATES = 20  # training images that each of them is compared with


class SanityChecks(Callback):
    """Prints warnings on standard error when they come up, and at the end again those that still hold."""

    def __init__(self, data: CaptionData) -> None:
        self.data = data
        self.of_data: list[str] = []
        self.of_captions: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        if trainer.is_global_zero:
            train, val = self.data.train.examples, self.data.val.examples
            self.of_data = [*shared_images(train, val), *unknown_words(self.data)]
            warn(self.of_data)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        """Check the captions, if all are there; after the first of several epochs they may all be the same."""
        complete = len(task.val_captions) == len(self.data.val.examples)
        if trainer.is_global_zero and complete and (trainer.current_epoch > 0 or trainer.max_epochs == 1):
            self.of_captions = same_caption(task.val_captions.values())
            warn(self.of_captions)

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        """Repeat the warnings where a long log is read: at its end."""
        warn(f"still at the end: {line}" for line in (*self.of_data, *self.of_captions))


def warn(lines: Iterable[str]) -> None:
    """Print warnings on standard error."""
    for line in lines:
        print(f"captioner train: warning: {line}", file=sys.stderr, flush=True)


def same_caption(captions: Iterable[str]) -> list[str]:
    """A warning if most images have the same caption."""
    counts = Counter(captions)
    total = counts.total()
    caption, most = counts.most_common(1)[0] if counts else ("", 0)
    if most < 3 or most <= MAX_SAME * total:
        return []
    return [
        f"{100 * most / total:.0f} % of the {total:,} validation images have the caption {caption!r}: the model "
        "ignores the images; train longer or with another --train.lr, and check the captions with data inspect"
    ]


def unknown_words(data: CaptionData) -> list[str]:
    """A warning if the vocabulary lacks too many words of the validation captions."""
    flat = data.val_set.flat
    share = float((flat != UNK).mean()) if len(flat) else 1.0
    if share >= MIN_COVERAGE:
        return []
    return [
        f"the vocabulary of {len(data.vocabulary):,} words has {100 * share:.1f} % of the words of the validation "
        f"captions, and the model never says the others: lower --data.min_count ({data.data.min_count}), or train on "
        "captions like those"
    ]


def shared_images(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """A warning if validation images are training images: the same files, or files with the same bytes.

    Only local files of equal size are read, of at most MAX_COMPARED validation images, evenly chosen, and
    MAX_CANDIDATES training images for each of them.
    """
    by_size: dict[int, list[Example]] = {}
    for example in train:
        by_size.setdefault(_size(example.path), []).append(example)
    by_size.pop(0, None)
    by_path = {example.path: example for example in train}
    pairs = [(example, by_path[example.path]) for example in val if example.path in by_path]
    same_size = [example for example in val if example.path not in by_path and _size(example.path) in by_size]
    compared = same_size[:: max(1, -(-len(same_size) // MAX_COMPARED))]
    digests: dict[Any, object] = {}

    def digest(path: Any) -> object:
        if path not in digests:
            digests[path] = object()  # equal to no other, if the file does not exist any more
            with suppress(OSError, UserError), open_file(path) as file:
                digests[path] = hashlib.blake2b(file.read(), digest_size=16).digest()
        return digests[path]

    partial = len(compared) < len(same_size)
    for example in compared:
        candidates = by_size[_size(example.path)]
        partial = partial or len(candidates) > MAX_CANDIDATES
        candidates = candidates[:MAX_CANDIDATES]
        pairs += [(example, other) for other in candidates if digest(other.path) == digest(example.path)][:1]
    if not pairs:
        return []
    at_least = "at least " if partial and len(pairs) < len(val) else ""
    return [
        f"{at_least}{len(pairs):,} of {len(val):,} validation images are training images, too "
        f"({pairs[0][0].name} is {pairs[0][1].name}), so that the scores are too high: remove them from one of the "
        "splits; data inspect lists them"
    ]


def _size(path: Any) -> int:
    """Bytes of a file; 0 for an album, a missing file and a file on another machine."""
    if isinstance(path, Member):
        return 0 if is_address(path.shard) else path.size
    try:
        return 0 if os.path.isdir(path) else os.stat(path).st_size
    except OSError:
        return 0
