"""CIDEr-D and BLEU-4 of many sampled captions at once, over word ids: the rewards of self-critical training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from captioner.metrics.scores import ORDER, SIGMA, bleu_from_counts

MIX = np.int64(6364136223846793005)  # the code of an n-gram is a polynomial of its ids in this, modulo 2⁶⁴


class _Grams(NamedTuple):
    """The distinct n-grams of each of C captions, for one n, sorted by caption, then by code.

    Of the captions "a b a" and "b", for n = 1: caption 0 0 1, code a b b, occurrences 2 1 1.
    """

    caption: np.ndarray  # (rows,)
    code: np.ndarray  # (rows,) int64
    occurrences: np.ndarray  # (rows,)


class _Table(NamedTuple):
    """The n-grams of all references, for one n: S distinct ones by code, and those of each image.

    Image 0 has the references "a b" (number 0) and "b b" (1), image 1 has "c" (2). For n = 1: codes a b c; pair
    (0, a) (0, b) (1, c); max_count 1 2 1; first 0 1 3 4; reference 0 | 0 1 | 2, with `weight` 1 | 1 2 | 1 times idf.
    """

    codes: np.ndarray  # (S,) ascending
    idf: np.ndarray  # (S,)
    pair: np.ndarray  # (pairs,) image · S + index in `codes`, ascending
    max_count: np.ndarray  # (pairs,) the most often that one reference of the image has the n-gram
    first: np.ndarray  # (pairs + 1,) where the rows of the pair start
    reference: np.ndarray  # (rows,) the references that have the n-gram
    weight: np.ndarray  # (rows,) occurrences · idf
    norm: np.ndarray  # (references,)


class Rewards:
    """Rewards of sampled captions, compared with the references of their training images.

    The reward is CIDEr-D (0 to 10; see :func:`captioner.metrics.cider_d`) plus `bleu_weight` times the BLEU-4 of the
    caption (0 to 1). END is the last token of every reference and of the captions that ended, so that a caption that
    stops where no reference does ("a man riding a") loses reward.

    Two n-grams with the same 64-bit code count as one. Among ten million the chance of such a pair is 1 in 400,000.

    Args:
        references: ids of the captions of each of the I training images, without END. The document frequencies are
            those of these images.
        end: id of END.
        bleu_weight: 0 for CIDEr-D alone.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]], end: int, bleu_weight: float = 0.0) -> None:
        self.bleu_weight = bleu_weight
        captions = [[*words, end] for refs in references for words in refs]
        self.lengths = np.array([len(words) for words in captions])
        self.counts = np.array([len(refs) for refs in references])  # of references, by image
        self.first = np.cumsum(self.counts) - self.counts
        image = np.repeat(np.arange(len(references)), self.counts)
        flat = np.fromiter((word for words in captions for word in words), np.int64, self.lengths.sum())
        self.tables = [self._table(grams, image) for grams in _grams(flat, self.lengths)]

    def _table(self, grams: _Grams, image: np.ndarray) -> _Table:
        codes, place = np.unique(grams.code, return_inverse=True)
        pair = image[grams.caption] * len(codes) + place
        order = np.argsort(pair, kind="stable")
        distinct, first = np.unique(pair[order], return_index=True)
        images_with = np.bincount(distinct % len(codes), minlength=len(codes))
        idf = np.log(len(self.counts)) - np.log(images_with)
        weight = grams.occurrences * idf[place]
        return _Table(
            codes,
            idf,
            distinct,
            np.maximum.reduceat(grams.occurrences[order], first),
            np.append(first, len(order)),
            grams.caption[order],
            weight[order],
            np.sqrt(np.bincount(grams.caption, weight**2, len(self.lengths))),
        )

    def __call__(self, images: np.ndarray, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(N,) rewards.

        With the references of :class:`_Table`, "b b b" of image 0 has the pair (0, b): as unigram matches for BLEU
        min(3, 2) = 2, and for CIDEr-D, by reference, the dot products min(3, 1) · 1 and min(3, 2) · 2 times idf².
        The sum over n of dot product / norms, times the length penalty exp(−Δ² / 2σ²), averaged, times 10 is CIDEr-D.

        Args:
            images: (N,) the training image of each caption.
            words: (N, M) ids, END after the captions that ended.
            lengths: (N,) tokens of each caption, END among them.
        """
        slots = int(self.counts[images].max())  # for the references of an image
        flat = words[np.arange(words.shape[1]) < lengths[:, None]]
        similarity, matches = np.zeros((len(images), slots)), []
        for grams, table in zip(_grams(flat, lengths), self.tables, strict=True):
            cosine, clipped = self._compare(grams, table, images, slots)
            similarity += cosine
            matches.append(clipped)
        sizes = self._by_slot(self.lengths, images, slots)
        similarity *= np.exp(-((sizes - lengths[:, None]) ** 2) / (2 * SIGMA**2))
        cider = 10 * similarity.sum(axis=1) / (ORDER * self.counts[images])
        if not self.bleu_weight:
            return cider
        distance = np.where(sizes > 0, np.abs(sizes - lengths[:, None]), np.inf)
        closest = np.where(distance == distance.min(axis=1, keepdims=True), sizes, np.inf).min(axis=1)
        guesses = [np.maximum(0, lengths - n) for n in range(ORDER)]
        return (
            cider + self.bleu_weight * bleu_from_counts(np.column_stack([*matches, *guesses, lengths, closest]))[:, -1]
        )

    def _compare(self, grams: _Grams, table: _Table, images: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare the n-grams of N captions with those of the references of their images.

        Returns:
            cosine: (N, slots) of CIDEr-D, with each reference of the image.
            matches: (N,) of BLEU, each n-gram counted at most as often as one reference has it.
        """
        number = len(images)
        if not len(table.codes):  # no reference is that long
            return np.zeros((number, slots)), np.zeros(number)
        place, known = _find(table.codes, grams.code)
        weight = grams.occurrences * np.where(known, table.idf[place], np.log(len(self.counts)))
        norm = np.sqrt(np.bincount(grams.caption, weight**2, number))
        at, shared = _find(table.pair, images[grams.caption] * len(table.codes) + place)
        shared &= known  # n-grams that a reference of the image has as well
        at, caption, shared_weight = at[shared], grams.caption[shared], weight[shared]
        matches = np.bincount(caption, np.minimum(grams.occurrences[shared], table.max_count[at]), number)
        row, repeats = _ranges(table.first[at], table.first[at + 1])  # a row for each reference that has the n-gram
        ours, theirs = np.repeat(shared_weight, repeats), table.weight[row]
        caption = np.repeat(caption, repeats)
        slot = table.reference[row] - self.first[images[caption]]
        dots = np.bincount(caption * slots + slot, np.minimum(ours, theirs) * theirs, number * slots)
        norms = norm[:, None] * self._by_slot(table.norm, images, slots)
        cosine = np.divide(dots.reshape(number, slots), norms, out=np.zeros_like(norms), where=norms > 0)
        return cosine, matches

    def _by_slot(self, values: np.ndarray, images: np.ndarray, slots: int) -> np.ndarray:
        """(references,) values → (N, slots): those of the references of each image, then zeros."""
        slot = np.arange(slots)
        inside = slot < self.counts[images][:, None]
        return np.where(inside, values[np.where(inside, self.first[images][:, None] + slot, 0)], 0)


def _find(ascending: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value, and whether it is there at all."""
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return place, ascending[place] == values


def _ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of several ranges, one after the other, and the lengths: starts 3 7, ends 5 8 → 3 4 7, 2 1."""
    lengths = ends - starts
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum()), lengths


def _grams(words: np.ndarray, lengths: np.ndarray) -> list[_Grams]:
    """The n-grams for n = 1 to 4 of C captions of `lengths` (C,) that lie one after the other in `words`."""
    caption = np.repeat(np.arange(len(lengths)), lengths)
    end = np.repeat(np.cumsum(lengths), lengths)
    place, code = np.arange(len(words)), words + 1
    found = []
    for n in range(1, ORDER + 1):
        if n > 1:  # extend each (n − 1)-gram by the word after it
            fits = place + n <= end
            place, end, caption = place[fits], end[fits], caption[fits]
            code = code[fits] * MIX + words[place + n - 1] + 1
        order = np.lexsort((code, caption))
        captions, codes = caption[order], code[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (captions[1:] != captions[:-1]) | (codes[1:] != codes[:-1])
        first = np.flatnonzero(new)
        found.append(_Grams(captions[first], codes[first], np.diff(first, append=len(order))))
    return found
