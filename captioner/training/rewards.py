"""CIDEr-D and BLEU-4 of many sampled captions at once, over word ids: the rewards of self-critical training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from captioner.metrics.scores import ORDER, SIGMA, bleu_from_counts

MIX = np.int64(6364136223846793005)  # an n-gram's code is a polynomial of its ids in this, modulo 2⁶⁴


class _Grams(NamedTuple):
    """The different n-grams of C captions, for one n: by caption, then by code."""

    caption: np.ndarray  # (rows,)
    code: np.ndarray  # (rows,) int64
    times: np.ndarray  # (rows,)


class _Table(NamedTuple):
    """The n-grams of the references, for one n: S different ones, by code, and those of each image."""

    codes: np.ndarray  # (S,)
    idf: np.ndarray  # (S,)
    pair: np.ndarray  # (pairs,) image · S + place of the code, ascending
    most: np.ndarray  # (pairs,) how often the reference with most of it has it
    first: np.ndarray  # (pairs + 1,) where the pair's rows begin
    caption: np.ndarray  # (rows,) the references that have it
    weight: np.ndarray  # (rows,) times · idf
    norm: np.ndarray  # (references,)


class Rewards:
    """What a sampled caption is worth, against the references of its training image.

    The reward is CIDEr-D (0 to 10; see :func:`captioner.metrics.cider_d`) and `bleu_weight` times the caption's own
    BLEU-4 (0 to 1). END is the last word of every reference, and of the captions that ended, so that a caption pays for
    stopping where no reference does ("a man riding a").

    Two n-grams with the same 64-bit code would be taken for one: with ten million of them, a chance of 1 in 400,000.

    Args:
        references: ids of the captions of each of the I training images, without END; the document frequencies of
            the n-grams are theirs.
        end: id of END.
        bleu_weight: 0 for CIDEr-D alone.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]], end: int, bleu_weight: float = 0.0) -> None:
        self.end, self.bleu_weight = end, bleu_weight
        captions = [[*words, end] for refs in references for words in refs]
        self.size = np.array([len(words) for words in captions])
        self.references = np.array([len(refs) for refs in references])
        self.first = np.cumsum(self.references) - self.references
        image = np.repeat(np.arange(len(references)), self.references)
        flat = np.fromiter((word for words in captions for word in words), np.int64, self.size.sum())
        self.tables = [self._table(grams, image) for grams in _grams(flat, self.size)]

    def _table(self, grams: _Grams, image: np.ndarray) -> _Table:
        codes, place = np.unique(grams.code, return_inverse=True)
        pair = image[grams.caption] * len(codes) + place
        order = np.argsort(pair, kind="stable")
        different, first = np.unique(pair[order], return_index=True)
        frequency = np.bincount(different % len(codes), minlength=len(codes))
        idf = np.log(len(self.references)) - np.log(frequency)
        weight = grams.times * idf[place]
        return _Table(
            codes,
            idf,
            different,
            np.maximum.reduceat(grams.times[order], first),
            np.append(first, len(order)),
            grams.caption[order],
            weight[order],
            np.sqrt(np.bincount(grams.caption, weight**2, len(self.size))),
        )

    def __call__(self, images: np.ndarray, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(N,) rewards.

        Args:
            images: (N,) the training image of each caption.
            words: (N, M) ids, END after those that ended.
            lengths: (N,) ids that count, END among them.
        """
        number, most = len(images), int(self.references[images].max())
        flat = words[np.arange(words.shape[1]) < lengths[:, None]]
        likeness = np.zeros((number, most))
        matches: list[np.ndarray] = []
        for grams, table in zip(_grams(flat, lengths), self.tables, strict=True):
            if not len(table.codes):  # no reference is so long
                matches.append(np.zeros(number))
                continue
            place = np.minimum(np.searchsorted(table.codes, grams.code), len(table.codes) - 1)
            known = table.codes[place] == grams.code
            idf = np.where(known, table.idf[place], np.log(len(self.references)))
            weight = grams.times * idf
            norm = np.sqrt(np.bincount(grams.caption, weight**2, number))
            # Those that a reference of the same image has, too.
            pair = images[grams.caption] * len(table.codes) + place
            at = np.minimum(np.searchsorted(table.pair, pair), len(table.pair) - 1)
            shared = known & (table.pair[at] == pair)
            at, ours, caption = at[shared], weight[shared], grams.caption[shared]
            matches.append(np.bincount(caption, np.minimum(grams.times[shared], table.most[at]), number))
            count = table.first[at + 1] - table.first[at]
            row = np.repeat(table.first[at] - (np.cumsum(count) - count), count) + np.arange(count.sum())
            theirs, reference, caption = table.weight[row], table.caption[row], np.repeat(caption, count)
            each = caption * most + reference - self.first[images[caption]]
            dots = np.bincount(each, np.minimum(np.repeat(ours, count), theirs) * theirs, number * most)
            norms = norm[:, None] * self._of_references(table.norm, images, most)
            likeness += np.divide(dots.reshape(number, most), norms, out=np.zeros_like(norms), where=norms > 0)
        sizes = self._of_references(self.size, images, most)
        likeness *= np.exp(-((sizes - lengths[:, None]) ** 2) / (2 * SIGMA**2))
        cider = 10 * likeness.sum(axis=1) / (ORDER * self.references[images])
        if not self.bleu_weight:
            return cider
        distance = np.where(sizes > 0, np.abs(sizes - lengths[:, None]), np.inf)
        closest = np.where(distance == distance.min(axis=1, keepdims=True), sizes, np.inf).min(axis=1)
        guesses = [np.maximum(0, lengths - n) for n in range(ORDER)]
        counts = np.column_stack([*matches, *guesses, lengths, closest])
        return cider + self.bleu_weight * bleu_from_counts(counts)[:, -1]

    def _of_references(self, values: np.ndarray, images: np.ndarray, most: int) -> np.ndarray:
        """(references,) → (N, most) those of each image, then zeros."""
        number = np.arange(most)
        inside = number < self.references[images][:, None]
        return np.where(inside, values[np.where(inside, self.first[images][:, None] + number, 0)], 0)


def _grams(words: np.ndarray, sizes: np.ndarray) -> list[_Grams]:
    """The n-grams for n = 1 to 4 of captions of `sizes` (C,) words that lie one after the other in `words`."""
    caption = np.repeat(np.arange(len(sizes)), sizes)
    end = np.repeat(np.cumsum(sizes), sizes)
    place, code = np.arange(len(words)), words + 1
    found = []
    for n in range(1, ORDER + 1):
        if n > 1:
            fits = place + n <= end
            place, end, caption = place[fits], end[fits], caption[fits]
            code = code[fits] * MIX + words[place + n - 1] + 1
        order = np.lexsort((code, caption))
        both = caption[order], code[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (both[0][1:] != both[0][:-1]) | (both[1][1:] != both[1][:-1])
        first = np.flatnonzero(new)
        found.append(_Grams(both[0][first], both[1][first], np.diff(first, append=len(order))))
    return found
