"""The vocabulary: words or characters ↔ ids."""

from __future__ import annotations

import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
import regex  # whose \w has combining marks and joiners, other than re's

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

JOINERS = "\u200c\u200d"  # zero-width: how letters of Indic and Arabic scripts join
_FIRST, _LAST = rf"[[\w\p{{N}}]--[\p{{M}}{JOINERS}]]", rf"(?<![{JOINERS}])"  # of a word: no mark; no joiner
_PART = rf"{_FIRST}[\w\p{{N}}]*{_LAST}"
_WORD = regex.compile(rf"(?V1)\d+(?:[.,:/]\d+)+|{_PART}(?:['’-]{_PART})*")


def tokenize(text: str) -> list[str]:
    """Lower-cased words without punctuation; inner apostrophes and hyphens, and numbers such as 10:30, stay.

    Characters are composed first (Unicode's NFC), and combining marks and joiners belong to their word, in any script.
    Text without spaces, as Chinese, stays one word: level char divides it.

    >>> tokenize("A man's T-shirt , size 5.5 !")
    ['a', "man's", 't-shirt', 'size', '5.5']
    >>> tokenize("हिन्दी में")
    ['हिन्दी', 'में']
    """
    return _WORD.findall(compose(text.lower()))


def compose(text: str) -> str:
    """Composed characters (NFC): é of one character, whether it was one or e and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def characters(text: str) -> list[str]:
    """The composed characters of a text."""
    return list(compose(text))


def is_word(word: object, level: str = "word") -> bool:
    """Whether this may be an entry of a vocabulary: a word without spaces and control characters, or one character.

    A caption then cannot contain the escape sequences of a terminal or line breaks.
    """
    if not isinstance(word, str):
        return False
    if level == "char":
        return len(word) == 1 and (word in "\n\t" or unicodedata.category(word) not in ("Cc", "Cs"))
    banned = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # Unicode's control, format, surrogate and space characters
    inner = regex.sub(rf"(?<=\w)[{JOINERS}](?=\w)", "", word)
    return word != "" and (word.isalnum() or all(unicodedata.category(c) not in banned for c in inner))


LEVELS: dict[str, Callable[[str], list[str]]] = {"word": tokenize, "char": characters}


_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
NO_SPACES = (
    "the captions have no spaces between words, so that each would be one word: --data.level char divides them into "
    "characters, and --tokenizer char scores captions by them"
)


def has_no_spaces(captions: Iterable[str]) -> bool:
    """Whether captions are of a script that needs no spaces between words, and have none, by the first thousand.

    Chinese, Japanese and Thai words have fewer than five letters in the mean, sentences more.
    """
    words = [word for caption in islice(captions, 1000) for word in tokenize(caption)]
    letters = [len(_UNSPACED.findall(regex.sub(r"\p{M}", "", word))) for word in words]
    of_script = [count for count in letters if count]
    return 2 * len(of_script) > len(words) and sum(of_script) >= 5 * len(of_script)


class TokenizedCaptions(NamedTuple):
    """Captions as numbers of their distinct words; see :func:`tokenize_all`."""

    words: list[str]  # in order of first occurrence
    flat: np.ndarray  # (N,) int32 indices into `words`: all captions, one after the other
    lengths: np.ndarray  # (captions,) int64 number of words of each caption


def tokenize_all(captions: Iterable[str], level: str = "word") -> TokenizedCaptions:
    """Split many captions, each as LEVELS[level] does.

    Captions repeat their words, and no word contains a space, so each distinct piece between spaces is tokenized once.

    >>> tokenize_all(["A dog.", "a dog runs"])
    TokenizedCaptions(words=['a', 'dog', 'runs'], flat=array([0, 1, 0, 1, 2], dtype=int32), lengths=array([2, 3]))
    """
    split = str.split if level == "word" else characters
    # each numbers its keys in the order in which they are first looked up
    pieces, words = defaultdict[str, int](count().__next__), defaultdict[str, int](count().__next__)
    counts = array("q")

    def split_and_count() -> Iterator[list[str]]:
        for caption in captions:
            found = split(caption)
            counts.append(len(found))
            yield found

    # In the example the pieces are "A" "dog." "a" "dog" "runs": piece_of 0 1 2 3 4, counts 2 3, ids [0] [1] [0] [1] [2]
    piece_of = np.fromiter(map(pieces.__getitem__, chain.from_iterable(split_and_count())), np.int32)
    ids = [[words[word] for word in LEVELS[level](piece)] for piece in pieces]
    table, sizes = np.fromiter(chain.from_iterable(ids), np.int32), np.fromiter(map(len, ids), np.int64)
    ends = np.cumsum(sizes[piece_of])  # of each piece in `flat`
    place = np.repeat(np.cumsum(sizes)[piece_of] - ends, sizes[piece_of])  # from an index in `flat` to one in `table`
    place += np.arange(len(place))
    lengths = np.diff(np.append(0, ends)[np.append(0, np.cumsum(counts))])
    return TokenizedCaptions(list(words), table[place], lengths)


class Vocabulary:
    """Word ↔ id, with PAD 0, START 1, END 2 and UNK 3 before the words.

    Args:
        words: the words with ids 4, 5, …; no duplicates.
        level: "word", or "char" where each entry is one character.
    """

    def __init__(self, words: Sequence[str], level: str = "word") -> None:
        self.words, self.level = (*SPECIAL, *words), level
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ValueError("a word occurs twice in the vocabulary")
        if level not in LEVELS:
            raise ValueError(f"level is {level!r}: expected {' or '.join(LEVELS)}")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1, level: str = "word") -> Vocabulary:
        """The words that occur at least `min_count` times in the training captions, most frequent first."""
        return cls.from_tokenized(tokenize_all(captions, level), min_count, level)

    @classmethod
    def from_tokenized(cls, captions: TokenizedCaptions, min_count: int = 1, level: str = "word") -> Vocabulary:
        """As :meth:`build`, of captions already tokenized. Tokens that fail :func:`is_word` are left out."""
        counts = np.bincount(captions.flat, minlength=len(captions.words)).tolist()
        kept = [(-count, word) for word, count in zip(captions.words, counts, strict=True) if count >= min_count]
        return cls([word for _, word in sorted(kept) if is_word(word, level)], level)

    def extended(self, other: Vocabulary) -> Vocabulary:
        """These words, with the same ids, then those of `other` that are new."""
        new = [word for word in other.words if word not in self.ids]
        return Vocabulary([*self.words[len(SPECIAL) :], *new], self.level)

    def lacking(self, captions: TokenizedCaptions) -> dict[str, int]:
        """How often each word occurs in `captions` that the vocabulary lacks, most frequent first."""
        counts = np.bincount(captions.flat, minlength=len(captions.words)).tolist()
        lost = [pair for pair in zip(captions.words, counts, strict=True) if pair[0] not in self.ids]
        return dict(sorted(lost, key=lambda pair: -pair[1]))

    def __len__(self) -> int:
        return len(self.words)

    def split(self, text: str) -> list[str]:
        """The words of a text by :func:`tokenize`, or its characters."""
        return LEVELS[self.level](text)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of the words, without START and END; an unknown word is UNK."""
        return [self.ids.get(word, UNK) for word in words]

    def encode_all(self, captions: TokenizedCaptions, max_words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The captions cut to `max_words`: (N,) int32 ids, one caption after the other.

        And (captions,) lengths, and whether they were cut.
        """
        flat = np.array(self.encode(captions.words), dtype=np.int32)[captions.flat]
        first = np.cumsum(captions.lengths) - captions.lengths
        kept = np.arange(len(flat)) - np.repeat(first, captions.lengths) < max_words
        return flat[kept], np.minimum(captions.lengths, max_words), captions.lengths > max_words

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` joined by spaces; characters are joined by nothing."""
        return (" " if self.level == "word" else "").join(self.words[i] for i in ids)
