"""A text as parallel streams of tokens, cut into chunks for truncated backpropagation through time."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from captioner.data.annotations import read_references
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.files import read_text


def read_corpus(path: Path) -> str:
    """The text of a UTF-8 file, or the captions of a .json file, one per line.

    Captions are shuffled with a fixed seed, because adjacent captions of one image would predict each other.
    """
    if path.suffix.lower() != ".json":
        return read_text(path, "text")
    captions = [" ".join(caption.split()) for each in read_references(path).captions.values() for caption in each]
    random.Random(0).shuffle(captions)
    return "\n".join(captions)


def hold_out(text: str, share: float) -> tuple[str, str]:
    """Split off the last `share` of the characters, at the end of a line if there is one."""
    place = int(len(text) * (1 - share))
    line = text.rfind("\n", 0, place) + 1
    return text[: line or place], text[line or place :]


def encode_text(text: str, vocabulary: Vocabulary, lines: bool) -> Tensor:
    """(N,) ids: START, words, END for each line that has words; or START and all words of the text."""
    sequences, end = (text.split("\n"), [END]) if lines else ([text], [])
    encoded = (vocabulary.encode(vocabulary.split(sequence)) for sequence in sequences)
    return torch.tensor([*chain.from_iterable([START, *ids, *end] for ids in encoded if ids)], dtype=torch.long)


class Streams(Dataset):
    """A text cut into B parts that are read in parallel; chunk k is the k-th T tokens of each part.

    The hidden state after a chunk is the one before the next chunk.

    Args:
        ids: (N,) the text.
        streams: B at most; fewer if a stream would be shorter than `steps`.
        steps: T; the last chunk may be shorter.
    """

    def __init__(self, ids: Tensor, streams: int, steps: int) -> None:
        tokens = len(ids) - 1
        streams = max(1, min(streams, tokens // steps))
        padding = (0, -tokens % streams)
        # no loss at PAD, at UNK, which a captioner never generates, and at START, which always follows END
        targets = ids[1:].masked_fill((ids[1:] == START) | (ids[1:] == UNK), PAD)
        self.inputs = F.pad(ids[:-1], padding, value=PAD).view(streams, -1)  # (B, length)
        self.targets = F.pad(targets, padding, value=PAD).view(streams, -1)  # (B, length), the token after each input
        self.steps = steps

    def __len__(self) -> int:
        return -(-self.inputs.shape[1] // self.steps)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a chunk, (B, T) each."""
        if not 0 <= k < len(self):
            raise IndexError(k)
        chunk = slice(k * self.steps, (k + 1) * self.steps)
        return self.inputs[:, chunk], self.targets[:, chunk]
