"""Words, or characters, and their ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+(?:['’-]\w+)*")


def tokenize(text: str) -> list[str]:
    """Lower-cased words without punctuation; inner apostrophes and hyphens, and numbers such as 10:30, stay.

    >>> tokenize("A man's T-shirt , size 5.5 !")
    ['a', "man's", 't-shirt', 'size', '5.5']
    """
    return _WORD.findall(text.lower())


LEVELS: dict[str, Callable[[str], list[str]]] = {"word": tokenize, "char": list}


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
        counts = Counter(word for caption in captions for word in LEVELS[level](caption))
        kept = [(-count, word) for word, count in counts.items() if count >= min_count]
        return cls([word for _, word in sorted(kept)], level)

    def __len__(self) -> int:
        return len(self.words)

    def split(self, text: str) -> list[str]:
        """The words of a text by :func:`tokenize`, or its characters."""
        return LEVELS[self.level](text)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of the words, without START and END; a word that is not known is UNK."""
        return [self.ids.get(word, UNK) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` joined by spaces; characters by nothing."""
        return (" " if self.level == "word" else "").join(self.words[i] for i in ids)
