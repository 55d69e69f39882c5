"""What can be wrong with a training whose numbers look well: each told in a line, with its figure and the remedy."""

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

SAME = 0.5  # share of the validation images above which one caption is too many
COVERED = 0.9  # share of the words of the validation captions below which a vocabulary is too small
LOOKED_AT = 500  # validation images whose bytes are compared, where very many have the size of a training image
OF_A_SIZE = 20  # training images each of them is compared with; in few formats more have the same size


class Health(Callback):
    """Prints warnings on standard error when they come up, and at the end once more those that still hold."""

    def __init__(self, data: CaptionData) -> None:
        self.data, self.lines, self.now = data, list[str](), list[str]()

    def on_train_start(self, trainer: pl.Trainer, task: Any) -> None:
        """What can be told of the data."""
        if trainer.is_global_zero:
            self.lines = [*shared_images(self.data.train.examples, self.data.val.examples), *unknown_words(self.data)]
            say(self.lines)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        """What can be told of the captions, if all are there. After one epoch of several they may all be the same."""
        whole = len(task.found) == len(self.data.val.examples)
        if trainer.is_global_zero and whole and (trainer.current_epoch > 0 or trainer.max_epochs == 1):
            self.now = same_caption(task.found.values())
            say(self.now)

    def on_train_end(self, trainer: pl.Trainer, task: Any) -> None:
        """The end of a long log is what is read."""
        say([f"still at the end: {line}" for line in (*self.lines, *self.now)])


def say(lines: Iterable[str]) -> None:
    """Print them as warnings."""
    for line in lines:
        print(f"captioner train: warning: {line}", file=sys.stderr, flush=True)


def same_caption(captions: Iterable[str]) -> list[str]:
    """A line, where most images have the same caption."""
    counts = Counter(captions)
    total = counts.total()
    caption, most = counts.most_common(1)[0] if counts else ("", 0)
    if most < 3 or most <= SAME * total:
        return []
    return [
        f"{100 * most / total:.0f} % of the {total:,} validation images have the caption {caption!r}: the model "
        "does not look at them; train longer, with another --train.lr, and see data inspect for what is in the captions"
    ]


def unknown_words(data: CaptionData) -> list[str]:
    """A line, where the vocabulary has too few of the words of the validation captions."""
    flat = data.val_set.flat
    share = float((flat != UNK).mean()) if len(flat) else 1.0
    if share >= COVERED:
        return []
    return [
        f"the vocabulary of {len(data.vocabulary):,} words has {100 * share:.1f} % of the words of the validation "
        f"captions, and what it lacks is never said: lower --data.min_count ({data.data.min_count}), or train on "
        "captions like those"
    ]


def shared_images(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """A line, where validation images are training images: the same files, or others with the same bytes.

    Files of one size are read, on this machine only: of LOOKED_AT validation images, evenly taken, and of OF_A_SIZE
    training images for each, at most.
    """
    sizes: dict[int, list[Any]] = {}
    for example in train:
        sizes.setdefault(_size(example.path), []).append(example)
    sizes.pop(0, None)
    files = {example.path: example for example in train}
    twins = [(example, files[example.path]) for example in val if example.path in files]
    alike = [example for example in val if example.path not in files and _size(example.path) in sizes]
    looked_at = alike[:: max(1, -(-len(alike) // LOOKED_AT))]
    digests: dict[Any, object] = {}

    def digest(path: Any) -> object:
        if path not in digests:
            digests[path] = object()  # equals no other, if the file has gone
            with suppress(OSError, UserError), open_file(path) as file:
                digests[path] = hashlib.blake2b(file.read(), digest_size=16).digest()
        return digests[path]

    for example in looked_at:
        others = sizes[_size(example.path)]
        twins += [(example, other) for other in others[:OF_A_SIZE] if digest(other.path) == digest(example.path)][:1]
    if not twins:
        return []
    some = len(looked_at) < len(alike) or any(len(sizes[_size(each.path)]) > OF_A_SIZE for each in looked_at)
    some = some and len(twins) < len(val)
    return [
        f"{'at least ' if some else ''}{len(twins):,} of {len(val):,} validation images are training images, too "
        f"({twins[0][0].name} is {twins[0][1].name}), so the scores are too good: take them out of one of the splits; "
        "data inspect lists them"
    ]


def _size(path: Any) -> int:
    """Bytes of a file; 0 for an album, for what is not there, and for what would have to be fetched."""
    if isinstance(path, Member):
        return 0 if is_address(path.shard) else path.size
    try:
        return 0 if os.path.isdir(path) else os.stat(path).st_size
    except OSError:
        return 0
