"""How captions become the tokens that are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Literal

import regex

from captioner.data.vocabulary import compose, tokenize
from captioner.metrics.ptb_tokenizer import ptb_tokenize_all

_DROPPED = regex.compile(r"[\s\p{P}\p{C}]+")


def characters(text: str) -> list[str]:
    """Lower-cased characters without white space and punctuation, combining marks with theirs, as for Chinese.

    >>> characters("两只狗。")
    ['两', '只', '狗']
    """
    return [each for each in regex.findall(r"\X", compose(text.lower())) if not _DROPPED.fullmatch(each)]


TOKENIZERS: dict[str, Callable[[Iterable[str]], list[list[str]]]] = {
    "ptb": ptb_tokenize_all,
    "words": lambda texts: [tokenize(text) for text in texts],
    "char": lambda texts: [characters(text) for text in texts],
    "none": lambda texts: [text.split() for text in texts],
}


def tokenizer_of(level: str) -> Literal["char", "ptb"]:
    """The tokenizer that scores captions of models of this level: char, or ptb for words."""
    return "char" if level == "char" else "ptb"


def tokenize_references(references: Iterable[Sequence[str]], tokenizer: str) -> list[list[list[str]]]:
    """The tokens of the captions of each image; coco-caption's depend on the next caption."""
    captions = list(references)
    flat = iter(TOKENIZERS[tokenizer](caption for each in captions for caption in each))
    return [list(islice(flat, len(each))) for each in captions]
