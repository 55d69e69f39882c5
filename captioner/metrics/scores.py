"""How close captions come to references: BLEU, ROUGE-L and CIDEr-D with coco-caption's numbers, without Java.

Everything here is a pure function of words already tokenised. ``references`` holds N images with one or more captions
each (any number), ``hypotheses`` holds N captions; both in the same order. A caption is a sequence of words and may be
empty; a word is anything that can be hashed. No image at all, different N, an image without references or a string
where words are expected raise ``ValueError``. Single functions return coco-caption's own scale (0 to 1, CIDEr 0 to 10);
:func:`score` returns what papers print (times 100). docs/metrics.md compares the definitions with those of others.
"""

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from captioner import __version__

Caption = Sequence[Hashable]
References = Sequence[Sequence[Caption]]

TINY, SMALL = 1e-15, 1e-9  # coco-caption's guards against 0/0 in BLEU; they are part of its numbers
BETA = 1.2  # ROUGE-L: recall weighs more than precision
SIGMA = 6.0  # CIDEr-D: tolerance for a difference in length, in words
ORDER = 4
LCS_CELLS = 1 << 15  # of a row of the tables of the longest common subsequence, all pairs together
NAMES = (*(f"BLEU-{n}" for n in range(1, ORDER + 1)), "ROUGE-L", "CIDEr")


class PerImage(NamedTuple):
    """What the corpus scores of N images, their intervals and comparisons are computed from."""

    counts: np.ndarray
    """(N, 10) int64, see :func:`bleu_counts`."""
    rouge: np.ndarray
    """(N,) ROUGE-L, 0..1."""
    cider: np.ndarray
    """(N,) CIDEr-D, 0..10."""

    def table(self) -> np.ndarray:
        """(N, 12) float: the three side by side, for sums over images that :func:`from_sums` takes."""
        return np.column_stack(self)


def per_image(references: References, hypotheses: Sequence[Caption]) -> PerImage:
    """BLEU's counts, ROUGE-L and CIDEr-D of each image; the words are gone through once."""
    corpus = _checked(references, hypotheses)
    matches, cosines = [], np.zeros(len(corpus.size))
    for grams in corpus.grams(ORDER):
        matches.append(_matches(corpus, grams))
        cosines += _cosines(corpus, grams, clip=True)
    return PerImage(_bleu_counts(corpus, matches), _rouge_l(corpus), _cider(corpus, cosines * _length_penalty(corpus)))


def from_sums(sums: np.ndarray, images: int) -> np.ndarray:
    """(..., 12) sums of rows of :meth:`PerImage.table`, so many rows each → (..., 6) scores :data:`NAMES`, 0..100.

    BLEU is that of the summed counts, ROUGE-L and CIDEr-D are means. A perfect CIDEr-D is 1000.
    """
    return 100 * np.concatenate([bleu_from_counts(sums[..., :-2]), sums[..., -2:] / images], axis=-1)


def bleu_counts(references: References, hypotheses: Sequence[Caption], order: int = ORDER) -> np.ndarray:
    """What BLEU is made of, (N, 2·order + 2) int64; rows of several images, processes or a resample add up.

    Columns: n-grams that match for n = 1..order (clipped by the largest count in any one reference), n-grams for
    n = 1..order, words c, and words r of the reference closest in length, of two equally close ones the shorter.
    """
    corpus = _checked(references, hypotheses)
    return _bleu_counts(corpus, [_matches(corpus, grams) for grams in corpus.grams(order)])


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-order (Papineni et al. 2002), each in 0..1, of counts as of :func:`bleu_counts`.

    (..., 2·order + 2) → (..., order), with coco-caption's constants::

        p_k    = (matches of order k + 1e-15) / (n-grams of order k + 1e-9)
        ratio  = (c + 1e-15) / (r + 1e-9)
        BLEU_k = (p_1 · … · p_k)^(1/k) · min(1, exp(1 − 1/ratio))
    """
    order = counts.shape[-1] // 2 - 1
    precision = (counts[..., :order] + TINY) / (counts[..., order:-2] + SMALL)
    ratio = (counts[..., -2:-1] + TINY) / (counts[..., -1:] + SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return brevity * np.cumprod(precision, axis=-1) ** (1 / np.arange(1, order + 1))


def bleu(references: References, hypotheses: Sequence[Caption], order: int = ORDER) -> list[float]:
    """Corpus BLEU-1 to BLEU-``order``, each in 0..1: of the counts of all images, not the mean of per-image scores."""
    return bleu_from_counts(bleu_counts(references, hypotheses, order).sum(axis=0)).tolist()


def nltk_bleu(references: References, hypotheses: Sequence[Caption]) -> list[float]:
    """BLEU-1 to BLEU-4 by ``nltk.translate.bleu_score.corpus_bleu`` without smoothing, 0..1: a check on :func:`bleu`.

    Both clip alike and choose the same reference length. They agree to 1e-6 unless, by definition,

    - a caption is shorter than n words: nltk still counts one n-gram for it, so its BLEU-n and above are lower;
    - an order has no match in the whole corpus: nltk, without the constants 1e-15 and 1e-9, gives nearly (1e-77 or
      less) or exactly 0, :func:`bleu` a little more (some 1e-5).
    """
    from nltk.translate.bleu_score import corpus_bleu

    _check(references, hypotheses)
    weights = [(1 / n,) * n for n in range(1, ORDER + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an order without a match; documented above
        return [float(value) for value in corpus_bleu(references, hypotheses, weights=weights)]


def rouge_l(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """ROUGE-L of each image (Lin 2004), (N,) in 0..1; the corpus score is the mean.

    With L the longest common subsequence of words, P = max L/|hypothesis| and R = max L/|reference|, each maximised
    over the references on its own, F = (1 + β²)·P·R / (R + β²·P), β = 1.2. An empty caption counts as one empty word,
    as in coco-caption: 0 against anything but another empty caption.
    """
    return _rouge_l(_checked(references, hypotheses))


def cider_d(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """CIDEr-D of each image (Vedantam et al. 2015, section 5), (N,) in 0..10; the corpus score is the mean.

    With h and r the counts of each n-gram times its idf = ln N − ln max(1, images with it in any reference), and Δ the
    difference in the number of bigrams::

        CIDEr-D = 10 · mean over n = 1..4 and references of  Σ min(h, r)·r / (‖h‖·‖r‖) · exp(−Δ² / 2σ²),  σ = 6

    This is what coco-caption prints as CIDEr. The idf comes from ``references``, so scores on different sets of images
    are not comparable; N = 1 gives 0.
    """
    corpus = _checked(references, hypotheses)
    cosines = np.sum([_cosines(corpus, grams, clip=True) for grams in corpus.grams(ORDER)], axis=0)
    return _cider(corpus, cosines * _length_penalty(corpus))


def cider(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """Plain CIDEr of each image (Vedantam et al. 2015, section 4), (N,) in 0..10; the corpus score is the mean.

    The cosine Σ h·r / (‖h‖·‖r‖) in place of :func:`cider_d`'s clipped and length-penalised one: repeating a word that
    is worth much pays. Times 10 and with unstemmed words, as the authors' code has it; the paper stems, does not scale.
    """
    corpus = _checked(references, hypotheses)
    return _cider(corpus, np.sum([_cosines(corpus, grams, clip=False) for grams in corpus.grams(ORDER)], axis=0))


def distinct(hypotheses: Sequence[Caption]) -> float:
    """Share of distinct captions, 0..1: one caption for every image gives 1/N, a different one for each gives 1."""
    _check_captions(hypotheses)
    return len({tuple(words) for words in hypotheses}) / len(hypotheses)


def distinct_n(hypotheses: Sequence[Caption], n: int) -> float:
    """Different n-grams of all captions over all their n-grams, 0..1 (Li et al. 2016); 0 if there are none.

    It falls as captions are added, so only sets of about the same size and length compare.
    """
    _check_captions(hypotheses)
    *_, grams = _Corpus([[]] * len(hypotheses), hypotheses).grams(n)
    return _distinct_n(grams)


def ending_in(hypotheses: Sequence[Caption], words: Iterable[Hashable]) -> float:
    """Share of the captions whose last word is one of `words`, 0..1."""
    _check_captions(hypotheses)
    endings = set(words)
    return sum(bool(caption) and caption[-1] in endings for caption in hypotheses) / len(hypotheses)


def vocabulary_used(hypotheses: Sequence[Caption]) -> int:
    """How many different words the captions have."""
    _check_captions(hypotheses)
    return len(set(chain.from_iterable(hypotheses)))


def self_bleu(hypotheses: Sequence[Caption], order: int = ORDER) -> float:
    """Mean BLEU-``order`` of each caption with all others as references, 0..1 (Zhu et al. 2018); lower is more diverse.

    BLEU of single captions is coco-caption's, as in :func:`bleu_from_counts`. One caption alone gives 0.
    """
    _check_captions(hypotheses)
    corpus = _Corpus([[]] * len(hypotheses), hypotheses)
    return _self_bleu(corpus, [_matches_of_others(corpus, grams) for grams in corpus.grams(order)])


def seen_share(hypotheses: Sequence[Caption], training: Iterable[Caption]) -> float:
    """Share of the captions that stand word for word among the training captions, 0..1."""
    _check_captions(hypotheses)
    captions = [tuple(words) for words in hypotheses]
    wanted = set(captions)
    seen = set()
    for words in training:
        if isinstance(words, str):
            raise ValueError("a training caption must be a sequence of words, not one string; tokenise it first")
        if (caption := tuple(words)) in wanted:
            seen.add(caption)
    return sum(caption in seen for caption in captions) / len(captions)


def score(
    references: References,
    hypotheses: Sequence[Caption],
    tokenizer: str,
    nltk: bool = False,
    images: PerImage | None = None,
) -> dict[str, Any]:
    """Every number that is reported, in full precision, with the signature that makes it comparable.

    Scores are 100 times coco-caption's (its CIDEr of 0.52 is 52, and a perfect caption reaches 1000), ``distinct``,
    ``distinct-1``, ``distinct-2`` and ``self-BLEU-4`` are in per cent, ``mean_length`` in words.

    Args:
        references: captions of N images.
        hypotheses: a caption for each.
        tokenizer: how the words were made; it goes into the signature.
        nltk: add nltk's BLEU, which takes longer than all the rest together.
        images: :func:`per_image` of the same captions, where it is known.
    """
    _check(references, hypotheses)
    images = per_image(references, hypotheses) if images is None else images
    scores = dict(zip(NAMES, from_sums(images.table().sum(axis=0), len(hypotheses)).tolist(), strict=True))
    sizes = [len(refs) for refs in references]
    refs = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    result = {
        **scores,
        **_diversity(hypotheses),
        "mean_length": sum(map(len, hypotheses)) / len(hypotheses),
        "images": len(hypotheses),
        "signature": f"captioner {__version__} | tokenizer:{tokenizer} | refs:{refs} | images:{len(hypotheses)}"
        " | scale:0-100 | BLEU, ROUGE-L, CIDEr-D as coco-caption",
    }
    if nltk:
        theirs = nltk_bleu(references, hypotheses)
        result["nltk"] = {f"BLEU-{n}": 100 * value for n, value in enumerate(theirs, start=1)}
    return result


# ---- captions as numbers


class _Grams(NamedTuple):
    """The n-grams of one n: a row for each different one of each caption, by image, n-gram and caption.

    Rows of one image and n-gram are a group; the hypothesis, where it has the n-gram, is the first of its group.
    """

    caption: np.ndarray  # (rows,)
    gram: np.ndarray  # (rows,) 0..kinds − 1
    times: np.ndarray  # (rows,) how often the caption has it
    first: np.ndarray  # (groups,) row where the group begins
    length: np.ndarray  # (groups,) its rows
    ours: np.ndarray  # (rows,) bool: a row of a hypothesis
    kinds: int  # different n-grams of the whole corpus


class _Corpus:
    """C captions one after the other: for each image the hypothesis, then its references. All arrays are int64."""

    def __init__(self, references: References, hypotheses: Sequence[Caption]) -> None:
        captions = [words for refs, ours in zip(references, hypotheses, strict=True) for words in (ours, *refs)]
        flat = list(chain.from_iterable(captions))
        ids = {word: i for i, word in enumerate(dict.fromkeys(flat))}
        self.vocabulary = len(ids)
        self.words = np.fromiter(map(ids.__getitem__, flat), np.int64, len(flat))  # (T,) 0..vocabulary − 1
        self.size = np.fromiter(map(len, captions), np.int64, len(captions))  # (C,) words
        self.start = np.cumsum(self.size) - self.size  # (C,) the caption's first word
        self.references = np.fromiter(map(len, references), np.int64, len(references))  # (N,) how many
        self.first = np.cumsum(self.references) - self.references  # (N,) the image's first place in `reference`
        self.image = np.repeat(np.arange(len(references)), self.references + 1)  # (C,)
        self.hypothesis = self.first + np.arange(len(references))  # (N,) which caption
        self.reference = np.delete(np.arange(len(captions)), self.hypothesis)  # (C − N,) which captions

    def grams(self, order: int) -> Iterator[_Grams]:
        """The n-grams for n = 1..order: an n-gram is an (n − 1)-gram and a word."""
        caption = np.repeat(np.arange(len(self.size)), self.size)
        end = np.repeat(self.start + self.size, self.size)
        place, gram, kinds = np.arange(len(self.words)), self.words, self.vocabulary
        most = 1 + int(self.references.max())  # captions of an image
        for n in range(1, order + 1):
            if n > 1:
                fits = place + n <= end
                place, end, caption, gram = place[fits], end[fits], caption[fits], gram[fits]
                different, gram = np.unique(gram * self.vocabulary + self.words[place + n - 1], return_inverse=True)
                kinds = len(different)
            image = self.image[caption]
            key = (image * kinds + gram) * most + caption - self.hypothesis[image]
            key, count = np.unique(key, return_counts=True)
            pair = key // most  # image and n-gram
            first = np.flatnonzero(np.diff(pair, prepend=-1))
            image = pair // max(1, kinds)
            number = key - pair * most  # of the caption among those of its image
            yield _Grams(
                caption=self.hypothesis[image] + number,
                gram=pair - image * kinds,
                times=count,
                first=first,
                length=np.diff(first, append=len(pair)),
                ours=number == 0,
                kinds=kinds,
            )


def _matches(corpus: _Corpus, grams: _Grams) -> np.ndarray:
    """(N,) n-grams of the hypothesis, clipped by the largest count in a reference of the same image."""
    hypothesis = np.where(grams.ours, grams.times, 0)[grams.first]
    largest = np.maximum.reduceat(np.where(grams.ours, 0, grams.times), grams.first) if len(grams.first) else 0
    image = corpus.image[grams.caption[grams.first]]
    return np.bincount(image, np.minimum(hypothesis, largest), len(corpus.references))


def _bleu_counts(corpus: _Corpus, matches: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2·order + 2) int64 from the matches (N,) of each order."""
    size = corpus.size[corpus.hypothesis]
    lengths = corpus.size[corpus.reference]
    distance = abs(lengths - np.repeat(size, corpus.references))
    # sorted by image, distance, length: the first of each image is its closest
    closest = lengths[np.lexsort((lengths, distance, np.repeat(np.arange(len(size)), corpus.references)))][corpus.first]
    return _columns(matches, size, closest)


def _columns(matches: Sequence[np.ndarray], size: np.ndarray, closest: np.ndarray) -> np.ndarray:
    guesses = [np.maximum(0, size - k) for k in range(len(matches))]
    return np.column_stack([*matches, *guesses, size, closest]).astype(np.int64)


def _cosines(corpus: _Corpus, grams: _Grams, clip: bool) -> np.ndarray:
    """(C,) likeness of each caption to its image's hypothesis in the n-grams of one n, 0..1."""
    hypothesis, captions = grams.ours[grams.first], len(corpus.size)
    images = np.bincount(grams.gram[grams.first][grams.length > hypothesis], minlength=grams.kinds)
    logs = np.log(np.arange(1, len(corpus.references) + 1))
    idf = logs[-1] - logs[np.maximum(images, 1) - 1]
    weight = grams.times * idf[grams.gram]
    ours = np.repeat(np.where(hypothesis, weight[grams.first], 0), grams.length)
    norm = np.sqrt(np.bincount(grams.caption, weight**2, captions))
    norm *= norm[corpus.hypothesis[corpus.image]]
    shared = np.bincount(grams.caption, (np.minimum(ours, weight) if clip else ours) * weight, captions)
    return np.divide(shared, norm, out=np.zeros(captions), where=norm > 0)


def _length_penalty(corpus: _Corpus) -> np.ndarray:
    """(C,) CIDEr-D's Gauss curve of the difference in words: also that in bigrams, unless a caption is empty."""
    delta = corpus.size - corpus.size[corpus.hypothesis[corpus.image]]
    return np.exp(-(delta**2) / (2 * SIGMA**2))


def _cider(corpus: _Corpus, similarity: np.ndarray) -> np.ndarray:
    """(C,) sums over n for each caption → (N,)."""
    return 10 * np.add.reduceat(similarity[corpus.reference], corpus.first) / (ORDER * corpus.references)


def _rouge_l(corpus: _Corpus) -> np.ndarray:
    size = np.maximum(1, corpus.size)
    common = _common_subsequences(corpus)
    precision = np.maximum.reduceat(common, corpus.first) / size[corpus.hypothesis]
    recall = np.maximum.reduceat(common / size[corpus.reference], corpus.first)
    below = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros(len(below)), where=below > 0)


def _common_subsequences(corpus: _Corpus) -> np.ndarray:
    """(C − N,) length of the longest common subsequence of each reference and its image's hypothesis.

    Two empty captions have one empty word in common. The table of the textbook is filled for many pairs at once, all of
    a row in a step: the best way to a cell comes from the row before or along its own row, a running maximum.
    """
    theirs, ours = corpus.reference, corpus.hypothesis[corpus.image[corpus.reference]]
    longer = np.maximum(corpus.size[theirs], corpus.size[ours])
    result = (longer == 0).astype(np.int64)
    todo = np.argsort(longer)[::-1]  # long pairs go with long ones
    todo = todo[: np.count_nonzero(longer)]
    while len(todo):
        now, todo = np.split(todo, [max(1, LCS_CELLS // longer[todo[0]])])
        a, b = _padded(corpus, theirs[now], -1), _padded(corpus, ours[now], -2)
        table = np.zeros((len(a) + 1, len(now)), np.int32)
        for words in b:
            table[1:] = np.maximum(table[1:], table[:-1] + (a == words))
            np.maximum.accumulate(table, axis=0, out=table)
        result[now] = table[-1]
    return result


def _padded(corpus: _Corpus, captions: np.ndarray, filler: int) -> np.ndarray:
    """(words of the longest, captions) ids, the word of one place in all captions side by side."""
    size = corpus.size[captions]
    place = np.arange(size.max())[:, None]
    words = corpus.words[np.minimum(corpus.start[captions] + place, len(corpus.words) - 1)]
    return np.where(place < size, words, filler)


def _diversity(hypotheses: Sequence[Caption]) -> dict[str, float]:
    """What :func:`score` says of the captions without their references, on its scale."""
    corpus = _Corpus([[]] * len(hypotheses), hypotheses)
    grams = list(corpus.grams(ORDER))
    others = [_matches_of_others(corpus, each) for each in grams]
    return {
        "distinct": 100 * distinct(hypotheses),
        "distinct-1": 100 * _distinct_n(grams[0]),
        "distinct-2": 100 * _distinct_n(grams[1]),
        "vocabulary": corpus.vocabulary,
        "self-BLEU-4": 100 * _self_bleu(corpus, others),
    }


def _distinct_n(grams: _Grams) -> float:
    return grams.kinds / max(1, int(grams.times.sum()))


def _matches_of_others(corpus: _Corpus, grams: _Grams) -> np.ndarray:
    """(N,) n-grams of each caption, clipped by the largest count in any other one; of a corpus without references.

    Whoever has most of an n-gram is clipped by the second most, nobody else is clipped.
    """
    by_count = np.lexsort((grams.times, grams.gram))
    gram, count = grams.gram[by_count], grams.times[by_count]
    most = np.diff(gram, append=-1) != 0
    second = np.where(np.diff(gram, prepend=-1) == 0, np.roll(count, 1), 0)
    return np.bincount(grams.caption[by_count], np.where(most, second, count), len(corpus.size))


def _self_bleu(corpus: _Corpus, matches: Sequence[np.ndarray]) -> float:
    if len(corpus.size) == 1:
        return 0.0
    lengths, which, captions = np.unique(corpus.size, return_inverse=True, return_counts=True)
    far = 3 * int(lengths[-1]) + 1  # farther than any neighbour
    shorter, longer = np.append(-far, lengths[:-1]), np.append(lengths[1:], far)
    neighbour = np.where(lengths - shorter <= longer - lengths, shorter, longer)
    closest = np.where(captions > 1, lengths, neighbour)[which]
    return float(bleu_from_counts(_columns(matches, corpus.size, closest))[:, -1].mean())


# ---- what cannot be scored is refused, by position


def _checked(references: References, hypotheses: Sequence[Caption]) -> _Corpus:
    _check(references, hypotheses)
    return _Corpus(references, hypotheses)


def _check(references: References, hypotheses: Sequence[Caption]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)} images: one caption each")
    if not len(hypotheses):
        raise ValueError("no captions to score")
    for i, (refs, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not len(refs):
            raise ValueError(f"image {i} has no reference caption")
        if any(isinstance(caption, str) for caption in (hypothesis, refs, *refs)):
            raise ValueError(f"image {i}: a caption must be a sequence of words, not one string; tokenise it first")


def _check_captions(hypotheses: Sequence[Caption]) -> None:
    if not len(hypotheses):
        raise ValueError("no captions to score")
    for i, hypothesis in enumerate(hypotheses):
        if isinstance(hypothesis, str):
            raise ValueError(f"caption {i} must be a sequence of words, not one string; tokenise it first")
