"""A text as parallel streams of tokens, cut into chunks for truncated backpropagation through time."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from captioner.data.references import read_references
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.errors import UserError


def read_corpus(path: Path) -> str:
    """A text file (UTF-8), or the captions of a .json file, as ``read_references`` reads them.

    Captions are one a line, always in the same random order: side by side, those of one image would tell each other.

    Raises:
        UserError: missing, unreadable, not UTF-8 or empty.
    """
    if path.suffix.lower() == ".json":
        captions = [" ".join(caption.split()) for each in read_references(path).captions.values() for caption in each]
        random.Random(0).shuffle(captions)
        return "\n".join(captions)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path}: is empty")
    return text


def hold_out(text: str, share: float) -> tuple[str, str]:
    """The text without its end, and its end, about `share` of the characters; cut between lines where there are any."""
    place = int(len(text) * (1 - share))
    line = text.rfind("\n", 0, place) + 1
    return text[: line or place], text[line or place :]


def pieces(text: str, lines: bool) -> list[str]:
    """What stands between START and END: each line; or the whole text, after a START."""
    return text.split("\n") if lines else [text]


def encode(text: str, vocabulary: Vocabulary, lines: bool) -> Tensor:
    """The stream of a text, (N,) ids: START, words, END for each line that has words, or START and all the words."""
    encoded = (vocabulary.encode(vocabulary.split(piece)) for piece in pieces(text, lines))
    end = [END] if lines else []
    return torch.tensor([*chain.from_iterable([START, *ids, *end] for ids in encoded if ids)], dtype=torch.long)


class Streams(Dataset):
    """Chunks of a text that is read in parallel streams, the k-th of each stream in chunk k.

    Stream b is the b-th part of the text; the state after a chunk is the state before the next one.

    Axes: B streams, T tokens.

    Args:
        ids: (N,) the text.
        streams: B at most; fewer where a stream would be shorter than `steps`.
        steps: T; the last chunk may be shorter.

    Attributes:
        inputs: (B, length) the tokens that are read, PAD behind the end of the text.
        targets: (B, length) the token after each of them; PAD where nothing is asked: behind the end, where it is UNK,
            which a captioner never says, and at START, which always follows END.
    """

    def __init__(self, ids: Tensor, streams: int, steps: int) -> None:
        tokens = len(ids) - 1
        streams = max(1, min(streams, tokens // steps))
        padding = -tokens % streams
        targets = ids[1:].masked_fill((ids[1:] == START) | (ids[1:] == UNK), PAD)
        self.inputs = F.pad(ids[:-1], (0, padding), value=PAD).view(streams, -1)
        self.targets = F.pad(targets, (0, padding), value=PAD).view(streams, -1)
        self.steps = steps

    def __len__(self) -> int:
        return -(-self.inputs.shape[1] // self.steps)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and (B, T) those that follow."""
        if not 0 <= k < len(self):
            raise IndexError(k)
        chunk = slice(k * self.steps, (k + 1) * self.steps)
        return self.inputs[:, chunk], self.targets[:, chunk]
