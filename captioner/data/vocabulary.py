"""Words, or characters, and their ids."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+(?:['’-]\w+)*")


def tokenize(text: str) -> list[str]:
    """Lower-cased words without punctuation; inner apostrophes and hyphens, and numbers such as 10:30, stay.

    >>> tokenize("A man's T-shirt , size 5.5 !")
    ['a', "man's", 't-shirt', 'size', '5.5']
    """
    return _WORD.findall(text.lower())


# Unicode's categories of controls, formats, surrogates and spaces.
_NO_LETTERS = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")


def is_word(word: object, level: str = "word") -> bool:
    """Whether it may stand in a vocabulary: a word without spaces and control characters, or one character.

    What a terminal would obey, or a line break in a file of lines, can then not come out of a model.
    """
    if not isinstance(word, str):
        return False
    if level == "char":
        return len(word) == 1 and (word in "\n\t" or unicodedata.category(word) not in ("Cc", "Cs"))
    return word != "" and (word.isalnum() or all(unicodedata.category(c) not in _NO_LETTERS for c in word))


LEVELS: dict[str, Callable[[str], list[str]]] = {"word": tokenize, "char": list}


class TokenizedCaptions(NamedTuple):
    """Captions in words, each word by a number of its own.

    Attributes:
        words: the different ones, in the order in which they first come.
        flat: (N,) int32 numbers of the words of all captions, one caption after the other.
        lengths: (captions,) int64 words of each.
    """

    words: list[str]
    flat: np.ndarray
    lengths: np.ndarray


class _Numbers(dict):
    """Every key that is asked for has the next number."""

    def __missing__(self, key: str) -> int:
        self[key] = value = len(self)
        return value


def tokenize_all(captions: Iterable[str], level: str = "word") -> TokenizedCaptions:
    """The words of many captions, as LEVELS[level] finds them in each.

    No word reaches over a space and captions repeat themselves, so that what stands between two spaces is looked at
    once for all the times that it comes.
    """
    cut: Callable[[str], list[str]] = str.split if level == "word" else list
    pieces, words, captions = _Numbers(), _Numbers(), iter(captions)
    blocks: list[tuple[np.ndarray, np.ndarray]] = []  # pieces, in the order of the captions; how many each has
    while some := [cut(caption) for caption in islice(captions, 1000)]:
        found = np.fromiter(map(pieces.__getitem__, chain.from_iterable(some)), np.int32)
        blocks.append((found, np.fromiter(map(len, some), np.int64)))
    of_piece = [[words[word] for word in LEVELS[level](piece)] for piece in pieces]
    table = np.fromiter(chain.from_iterable(of_piece), np.int32)
    size = np.fromiter(map(len, of_piece), np.int64)
    start = np.cumsum(size) - size
    flat, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for found, counts in blocks:
        ends = np.cumsum(size[found])
        place = np.repeat(start[found] - ends + size[found], size[found]) + np.arange(ends[-1] if len(ends) else 0)
        flat.append(table[place])
        lengths.append(np.diff(np.append(0, ends)[np.append(0, np.cumsum(counts))]))
    return TokenizedCaptions(list(words), np.concatenate(flat), np.concatenate(lengths))


class Vocabulary:
    """Word ↔ id, with PAD 0, START 1, END 2 and UNK 3 before the words.

    Args:
        words: the words with ids 4, 5, …; no duplicates.
        level: "word", or "char": the words are the characters of a text as it is written.
    """

    def __init__(self, words: Sequence[str], level: str = "word") -> None:
        self.words, self.level = (*SPECIAL, *words), level
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ValueError("a word stands in the vocabulary twice")
        if level not in LEVELS:
            raise ValueError(f"a vocabulary of the level {level!r}")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1, level: str = "word") -> Vocabulary:
        """Count the words of the training captions; those seen at least `min_count` times, commonest first."""
        return cls.from_tokenized(tokenize_all(captions, level), min_count, level)

    @classmethod
    def from_tokenized(cls, captions: TokenizedCaptions, min_count: int = 1, level: str = "word") -> Vocabulary:
        """The same of captions that are split already. What is no word, such as a control character, is left out."""
        counts = np.bincount(captions.flat, minlength=len(captions.words)).tolist()
        kept = [(-count, word) for word, count in zip(captions.words, counts, strict=True) if count >= min_count]
        return cls([word for _, word in sorted(kept) if is_word(word, level)], level)

    def __len__(self) -> int:
        return len(self.words)

    def split(self, text: str) -> list[str]:
        """The words of a text by :func:`tokenize`, or its characters."""
        return LEVELS[self.level](text)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of the words, without START and END; a word that is not known is UNK."""
        return [self.ids.get(word, UNK) for word in words]

    def encode_all(self, captions: TokenizedCaptions, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the first `most` words of each caption: (N,) int32, one after the other; (captions,) how many."""
        flat = np.array(self.encode(captions.words), dtype=np.int32)[captions.flat]
        if captions.lengths.max(initial=0) > most:
            first = np.cumsum(captions.lengths) - captions.lengths
            flat = flat[np.arange(len(flat)) - np.repeat(first, captions.lengths) < most]
        return flat, np.minimum(captions.lengths, most)

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` joined by spaces; characters by nothing."""
        return (" " if self.level == "word" else "").join(self.words[i] for i in ids)
