"""Captions scored against references: BLEU, ROUGE-L and CIDEr-D with coco-caption's numbers, without Java.

Everything here is a pure function of tokenised captions. ``references`` has one or more captions for each of N images,
``hypotheses`` one caption for each, in the same order. A caption is a sequence of words and may be empty; a word is
anything that can be hashed. ``ValueError`` is raised for no image, different N, an image without references, and a
string where words are expected. Single functions return coco-caption's own scale (0 to 1, CIDEr 0 to 10),
:func:`score_tokens` returns them times 100, as in papers. docs/metrics.md compares the definitions with those of
other libraries.
"""

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from captioner import __version__
from captioner.errors import counted

Caption = Sequence[Hashable]
References = Sequence[Sequence[Caption]]

TINY, SMALL = 1e-15, 1e-9  # coco-caption's guards against 0/0 in BLEU; they are part of its numbers
BETA = 1.2  # ROUGE-L: recall weighs more than precision
SIGMA = 6.0  # CIDEr-D: tolerance for a difference in length, in words
ORDER = 4
LCS_CELLS = 1 << 15  # cells in a row of the tables of longest common subsequences, all pairs together
NAMES = (*(f"BLEU-{n}" for n in range(1, ORDER + 1)), "ROUGE-L", "CIDEr")


class PerImage(NamedTuple):
    """Statistics of N images from which corpus scores, their intervals and comparisons are computed."""

    counts: np.ndarray
    """(N, 10) int64, see :func:`bleu_counts`."""
    rouge: np.ndarray
    """(N,) ROUGE-L, 0..1."""
    cider: np.ndarray
    """(N,) CIDEr-D, 0..10."""

    def table(self) -> np.ndarray:
        """(N, 12) float: the three side by side; :func:`corpus_scores` takes sums of the rows."""
        return np.column_stack(self)

    def corpus_scores(self) -> np.ndarray:
        """(6,) the scores :data:`NAMES` of all images together, 0..100."""
        return corpus_scores(self.table().sum(axis=0), len(self.cider))


class DocumentFrequencies:
    """The number of `images`, and `counts` of those with each n-gram (n = 1..4) in any reference, for CIDEr's idf."""

    def __init__(self, references: References) -> None:
        self.images = len(references)
        self.counts: Counter[tuple[Hashable, ...]] = Counter()
        for refs in references:
            orders = ((words, n) for words in _divided(refs) for n in range(1, ORDER + 1))
            self.counts.update({tuple(words[i : i + n]) for words, n in orders for i in range(len(words) - n + 1)})


def per_image(
    references: References, hypotheses: Sequence[Caption], frequencies: DocumentFrequencies | None = None
) -> PerImage:
    """BLEU's counts, ROUGE-L and CIDEr-D (see :func:`cider_d`) of each image, in one pass over the words.

    As in coco-caption a word with a space in it, such as "2 1/2" with a no-break space, is two for BLEU and CIDEr-D and
    one for ROUGE-L.
    """
    corpus = whole = _Corpus(hypotheses, references, frequencies)
    if any(map(_has_space, whole.vocabulary)):
        corpus = _Corpus(_divided(hypotheses), [_divided(refs) for refs in references], frequencies)
    matches, cosines = [], np.zeros(len(corpus.size))
    for grams in corpus.grams(ORDER):
        matches.append(_matches(corpus, grams))
        cosines += _cosines(corpus, grams, clip=True)
    size = corpus.size[corpus.hypothesis]  # (N,)
    delta = corpus.size - size[corpus.image]  # (C,) in words; in bigrams it is the same unless a caption is empty
    similarity = cosines * np.exp(-(delta**2) / (2 * SIGMA**2))
    counts = _bleu_counts(matches, size, _closest_lengths(corpus))
    return PerImage(counts, _rouge_l(whole), _cider(corpus, similarity))


def _has_space(word: Hashable) -> bool:
    return isinstance(word, str) and len(word.split()) > 1


def _divided(captions: Sequence[Caption]) -> list[Caption]:
    """Captions whose words have no spaces in them."""
    return [
        [part for word in words for part in (str(word).split() if _has_space(word) else [word])] for words in captions
    ]


def corpus_scores(sums: np.ndarray, images: int) -> np.ndarray:
    """(..., 12) sums of `images` rows of :meth:`PerImage.table` → (..., 6) scores :data:`NAMES`, 0..100.

    BLEU is that of the summed counts, ROUGE-L and CIDEr-D are means. A perfect CIDEr-D is 1000.
    """
    return 100 * np.concatenate([bleu_from_counts(sums[..., :-2]), sums[..., -2:] / images], axis=-1)


def bleu_counts(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """The integers that BLEU is computed from, (N, 10) int64; sums of rows are those of a set of images.

    Columns: n-grams that match for n = 1..4 (clipped by the largest count in any one reference), n-grams for n = 1..4,
    words c, and words r of the reference closest in length, of two equally close ones the shorter.
    """
    return per_image(references, hypotheses).counts


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002), each in 0..1, of counts as of :func:`bleu_counts`.

    (..., 10) → (..., 4), with coco-caption's constants::

        p_k    = (matches of order k + 1e-15) / (n-grams of order k + 1e-9)
        ratio  = (c + 1e-15) / (r + 1e-9)
        BLEU_k = (p_1 · … · p_k)^(1/k) · min(1, exp(1 − 1/ratio))
    """
    precision = (counts[..., :ORDER] + TINY) / (counts[..., ORDER:-2] + SMALL)
    ratio = (counts[..., -2:-1] + TINY) / (counts[..., -1:] + SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return brevity * np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDER + 1))


def bleu(references: References, hypotheses: Sequence[Caption]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4, each in 0..1: of the counts of all images, not the mean of per-image scores."""
    return bleu_from_counts(bleu_counts(references, hypotheses).sum(axis=0)).tolist()


def nltk_bleu(references: References, hypotheses: Sequence[Caption]) -> list[float]:
    """BLEU-1 to BLEU-4 by ``nltk.translate.bleu_score.corpus_bleu`` without smoothing, 0..1: a check on :func:`bleu`.

    They agree to 1e-6 unless a caption is shorter than n words, for which nltk still counts one n-gram, or an order has
    no match in the whole corpus, where nltk gives 0 or 1e-77 or less and :func:`bleu` about 1e-5.
    """
    from nltk.translate.bleu_score import corpus_bleu

    _check(hypotheses, references)
    weights = [(1 / n,) * n for n in range(1, ORDER + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an order without a match
        return [float(value) for value in corpus_bleu(references, hypotheses, weights=weights)]


def rouge_l(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """ROUGE-L of each image (Lin 2004), (N,) in 0..1; the corpus score is the mean.

    With L the longest common subsequence of words, P = max L/|hypothesis| and R = max L/|reference|, each maximised
    over the references separately, F = (1 + β²)·P·R / (R + β²·P), β = 1.2. An empty caption counts as one empty word,
    as in coco-caption: it scores 0 except against another empty caption.
    """
    return per_image(references, hypotheses).rouge


def cider_d(
    references: References, hypotheses: Sequence[Caption], frequencies: DocumentFrequencies | None = None
) -> np.ndarray:
    """CIDEr-D of each image (Vedantam et al. 2015, section 5), (N,) in 0..10; the corpus score is the mean.

    With h and r the counts of each n-gram times its idf = ln N − ln max(1, images with it in any reference), and Δ the
    difference in the number of bigrams::

        CIDEr-D = 10 · mean over n = 1..4 and references of  Σ min(h, r)·r / (‖h‖·‖r‖) · exp(−Δ² / 2σ²),  σ = 6

    This is what coco-caption prints as CIDEr. The idf depends on ``references``, so scores on different sets of images
    are not comparable; N = 1 gives 0. With `frequencies` N and idf are those of other images.
    """
    return per_image(references, hypotheses, frequencies).cider


def cider(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """Plain CIDEr of each image (Vedantam et al. 2015, section 4), (N,) in 0..10; the corpus score is the mean.

    The cosine Σ h·r / (‖h‖·‖r‖) without the clipping and the length penalty of :func:`cider_d`, so repeating a rare
    word raises it. Times 10 and with unstemmed words, as in the authors' code; the paper stems and does not scale.
    """
    corpus = _Corpus(hypotheses, references)
    return _cider(corpus, np.sum([_cosines(corpus, grams, clip=False) for grams in corpus.grams(ORDER)], axis=0))


def distinct(hypotheses: Sequence[Caption]) -> float:
    """Distinct captions over all captions, 0..1: the same caption for every image gives 1/N."""
    _check(hypotheses)
    return len({tuple(words) for words in hypotheses}) / len(hypotheses)


def distinct_n(hypotheses: Sequence[Caption], n: int) -> float:
    """Distinct n-grams over all n-grams of all captions, 0..1 (Li et al. 2016); 0 if there are none.

    It falls as captions are added, so only sets of similar size and length are comparable.
    """
    *_, grams = _Corpus(hypotheses).grams(n)
    return len(grams.start) / max(1, int(grams.counts.sum()))


def ending_share(hypotheses: Sequence[Caption], words: Iterable[Hashable]) -> float:
    """Share of the captions whose last word is one of `words`, 0..1."""
    _check(hypotheses)
    endings = set(words)
    return sum(bool(caption) and caption[-1] in endings for caption in hypotheses) / len(hypotheses)


def self_bleu(hypotheses: Sequence[Caption]) -> float:
    """Mean BLEU-4 of each caption with all others as references, 0..1 (Zhu et al. 2018); lower is more diverse.

    BLEU of single captions is coco-caption's, as in :func:`bleu_from_counts`. A single caption gives 0.
    """
    corpus = _Corpus(hypotheses)
    if len(hypotheses) == 1:
        return 0.0
    matches = [_matches_of_others(corpus, grams) for grams in corpus.grams(ORDER)]
    # The closest length of another caption is the same length if another has it, else a neighbour in `lengths`.
    lengths, which, captions = np.unique(corpus.size, return_inverse=True, return_counts=True)
    far = 3 * int(lengths[-1]) + 1  # farther than any neighbour
    shorter, longer = np.append(-far, lengths[:-1]), np.append(lengths[1:], far)
    neighbour = np.where(lengths - shorter <= longer - lengths, shorter, longer)
    closest = np.where(captions > 1, lengths, neighbour)[which]
    return float(bleu_from_counts(_bleu_counts(matches, corpus.size, closest))[:, -1].mean())


def seen_share(hypotheses: Sequence[Caption], training: Iterable[Caption]) -> float:
    """Share of the captions that are, word for word, among the training captions, 0..1."""
    _check(hypotheses)
    captions = [tuple(words) for words in hypotheses]
    unseen = set(captions)
    for words in training:
        if isinstance(words, str):
            raise ValueError("a training caption must be a sequence of words, not one string; tokenise it first")
        unseen.discard(tuple(words))
    return sum(caption not in unseen for caption in captions) / len(captions)


def score_tokens(
    references: References,
    hypotheses: Sequence[Caption],
    tokenizer: str,
    nltk: bool = False,
    images: PerImage | None = None,
) -> dict[str, Any]:
    """All scores in full precision, with the signature that makes them comparable.

    Scores are 100 times coco-caption's (its CIDEr of 0.52 is 52, and a perfect caption reaches 1000), ``distinct``,
    ``distinct-1``, ``distinct-2`` and ``self-BLEU-4`` are in per cent, ``mean_length`` in words.

    Args:
        tokenizer: how the words were made, for the signature.
        nltk: add nltk's BLEU, which takes longer than everything else together.
        images: :func:`per_image` of the same captions, where it is computed already.
    """
    images = per_image(references, hypotheses) if images is None else images
    sizes = [len(refs) for refs in references]
    refs = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    result = {
        **dict(zip(NAMES, images.corpus_scores().tolist(), strict=True)),
        "distinct": 100 * distinct(hypotheses),
        "distinct-1": 100 * distinct_n(hypotheses, 1),
        "distinct-2": 100 * distinct_n(hypotheses, 2),
        "vocabulary": len(set(chain.from_iterable(hypotheses))),
        "self-BLEU-4": 100 * self_bleu(hypotheses),
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
    """The n-grams of one n: a row for each distinct n-gram of each caption, sorted by image, n-gram and caption.

    The rows of one image and n-gram are a group; if the hypothesis has the n-gram, its row is the first of the group.

    Example, n = 1, an image with the hypothesis "a b a" (caption 0) and the references "a" (1) and "b c" (2)::

        caption 0 1 0 2 2,  gram a a b b c,  counts 2 1 1 1 1,  first 0 2 4,  rows 2 2 1
    """

    caption: np.ndarray  # (R,)
    gram: np.ndarray  # (R,) id 0..distinct − 1
    counts: np.ndarray  # (R,) occurrences in the caption
    is_hypothesis: np.ndarray  # (R,) bool
    first: np.ndarray  # (G,) first row of each group
    rows: np.ndarray  # (G,) number of rows of each group
    start: np.ndarray  # (distinct,) place in the corpus where each n-gram occurs
    n: int


class _Corpus:
    """C captions in a row: of each image the hypothesis, then its references. All arrays are int64."""

    def __init__(
        self,
        hypotheses: Sequence[Caption],
        references: References | None = None,
        frequencies: DocumentFrequencies | None = None,
    ) -> None:
        _check(hypotheses, references)
        self.frequencies = frequencies
        refs: References = [[]] * len(hypotheses) if references is None else references
        captions = [words for hypothesis, image in zip(hypotheses, refs, strict=True) for words in (hypothesis, *image)]
        flat = list(chain.from_iterable(captions))
        self.vocabulary = list(dict.fromkeys(flat))
        ids = {word: i for i, word in enumerate(self.vocabulary)}
        self.words = np.fromiter(map(ids.__getitem__, flat), np.int64, len(flat))  # (T,) places in `vocabulary`
        self.size = np.fromiter(map(len, captions), np.int64, len(captions))  # (C,) words of each caption
        self.start = np.cumsum(self.size) - self.size  # (C,) its first word
        self.references = np.fromiter(map(len, refs), np.int64, len(refs))  # (N,) number of each image's references
        self.first = np.cumsum(self.references) - self.references  # (N,) its first place in `reference`
        self.image = np.repeat(np.arange(len(refs)), self.references + 1)  # (C,)
        self.hypothesis = self.first + np.arange(len(refs))  # (N,) captions that are hypotheses
        self.reference = np.delete(np.arange(len(captions)), self.hypothesis)  # (C − N,) captions that are references

    def grams(self, order: int) -> Iterator[_Grams]:
        """The n-grams for n = 1..order. The id of an n-gram numbers the pairs of an (n − 1)-gram and a word.

        Example: "a b a" has the word ids 0 1 0. Its bigrams are the pairs (0, 1) and (1, 0), as one number, with two
        words in the vocabulary, 0 · 2 + 1 = 1 and 1 · 2 + 0 = 2; their ids are the ranks of these numbers, 0 and 1.
        """
        caption = np.repeat(np.arange(len(self.size)), self.size)  # (T,) of each n-gram, by its first word
        end = np.repeat(self.start + self.size, self.size)  # (T,)
        place, gram, distinct = np.arange(len(self.words)), self.words, len(self.vocabulary)
        most = 1 + int(self.references.max())  # captions of an image
        for n in range(1, order + 1):
            if n > 1:
                fits = place + n <= end
                place, end, caption, gram = place[fits], end[fits], caption[fits], gram[fits]
                pairs, gram = np.unique(gram * len(self.vocabulary) + self.words[place + n - 1], return_inverse=True)
                distinct = len(pairs)
            image = self.image[caption]
            key = (image * distinct + gram) * most + caption - self.hypothesis[image]  # image, n-gram, caption
            key, counts = np.unique(key, return_counts=True)  # (R,)
            group, number = np.divmod(key, most)  # image and n-gram; 0 is the hypothesis, 1 the first reference
            image, gram_of_row = np.divmod(group, max(1, distinct))
            first = np.flatnonzero(np.diff(group, prepend=-1))
            start = np.empty(distinct, np.int64)
            start[gram] = place
            yield _Grams(
                caption=self.hypothesis[image] + number,
                gram=gram_of_row,
                counts=counts,
                is_hypothesis=number == 0,
                first=first,
                rows=np.diff(first, append=len(group)),
                start=start,
                n=n,
            )


def _matches(corpus: _Corpus, grams: _Grams) -> np.ndarray:
    """(N,) n-grams of the hypothesis, each clipped by its largest count in a reference of the image.

    Example: hypothesis "a a b b", references "a" and "a a b". a counts min(2, 2), b min(2, 1): 3 matches.
    """
    ours = np.where(grams.is_hypothesis, grams.counts, 0)[grams.first]  # (G,)
    largest = np.maximum.reduceat(np.where(grams.is_hypothesis, 0, grams.counts), grams.first)
    image = corpus.image[grams.caption[grams.first]]  # (G,)
    return np.bincount(image, np.minimum(ours, largest), len(corpus.references))


def _closest_lengths(corpus: _Corpus) -> np.ndarray:
    """(N,) words of the reference closest in length to the hypothesis, of two equally close ones the shorter."""
    lengths, image = corpus.size[corpus.reference], corpus.image[corpus.reference]  # (C − N,)
    distance = abs(lengths - corpus.size[corpus.hypothesis][image])
    return lengths[np.lexsort((lengths, distance, image))][corpus.first]


def _bleu_counts(matches: Sequence[np.ndarray], size: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """(N, 10) int64 from the matches (N,) of each n, and the words (N,) of captions and closest references."""
    ngrams = [np.maximum(0, size - n) for n in range(ORDER)]
    return np.column_stack([*matches, *ngrams, size, closest]).astype(np.int64)


def _idf(corpus: _Corpus, grams: _Grams) -> np.ndarray:
    """(distinct,) ln N − ln max(1, images with the n-gram in any reference)."""
    frequencies = corpus.frequencies
    if frequencies is None:
        has_reference = grams.rows > grams.is_hypothesis[grams.first]  # (G,)
        images = np.bincount(grams.gram[grams.first][has_reference], minlength=len(grams.start))
    else:
        places = grams.start[:, None] + np.arange(grams.n)  # (distinct, n)
        ngrams = (tuple(corpus.vocabulary[word] for word in words) for words in corpus.words[places].tolist())
        images = np.fromiter((frequencies.counts[ngram] for ngram in ngrams), np.int64)
    logs = np.log(np.arange(1, (frequencies.images if frequencies else len(corpus.references)) + 1))
    return logs[-1] - logs[np.maximum(images, 1) - 1]


def _cosines(corpus: _Corpus, grams: _Grams, clip: bool) -> np.ndarray:
    """(C,) cosine, 0..1, of each caption and its image's hypothesis; `clip` limits the latter's weights."""
    idf = _idf(corpus, grams)
    has_hypothesis, captions = grams.is_hypothesis[grams.first], len(corpus.size)  # (G,)
    weight = grams.counts * idf[grams.gram]  # (R,)
    ours = np.repeat(np.where(has_hypothesis, weight[grams.first], 0), grams.rows)  # (R,) the hypothesis's weight
    norm = np.sqrt(np.bincount(grams.caption, weight**2, captions))  # (C,)
    norm *= norm[corpus.hypothesis[corpus.image]]
    shared = np.bincount(grams.caption, (np.minimum(ours, weight) if clip else ours) * weight, captions)
    return np.divide(shared, norm, out=np.zeros(captions), where=norm > 0)


def _cider(corpus: _Corpus, similarity: np.ndarray) -> np.ndarray:
    """(C,) sums over n for each caption → (N,)."""
    return 10 * np.add.reduceat(similarity[corpus.reference], corpus.first) / (ORDER * corpus.references)


def _rouge_l(corpus: _Corpus) -> np.ndarray:
    size = np.maximum(1, corpus.size)
    common = _common_subsequences(corpus)
    precision = np.maximum.reduceat(common, corpus.first) / size[corpus.hypothesis]
    recall = np.maximum.reduceat(common / size[corpus.reference], corpus.first)
    divisor = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, divisor, out=np.zeros(len(divisor)), where=divisor > 0)


def _common_subsequences(corpus: _Corpus) -> np.ndarray:
    """(C − N,) length of the longest common subsequence of each reference and its image's hypothesis; 1 if both empty.

    The usual table, a row per word of the hypothesis, for many pairs at once. A cell is the best of the cell above, of
    the one above to the left plus a match, and of the cells to its left (a running maximum).

    Example: with the reference "a b c", the row after the hypothesis's word "a" is 0 1 1 1, after "a c" 0 1 1 2.
    """
    theirs, ours = corpus.reference, corpus.hypothesis[corpus.image[corpus.reference]]
    longer = np.maximum(corpus.size[theirs], corpus.size[ours])
    result = (longer == 0).astype(np.int64)
    pairs = np.argsort(longer)[::-1]  # pairs of similar length together
    pairs = pairs[: np.count_nonzero(longer)]
    while len(pairs):
        now, pairs = np.split(pairs, [max(1, LCS_CELLS // longer[pairs[0]])])
        a, b = _padded(corpus, theirs[now], -1), _padded(corpus, ours[now], -2)
        table = np.zeros((len(a) + 1, len(now)), np.int32)
        for words in b:
            table[1:] = np.maximum(table[1:], table[:-1] + (a == words))
            np.maximum.accumulate(table, axis=0, out=table)
        result[now] = table[-1]
    return result


def _padded(corpus: _Corpus, captions: np.ndarray, filler: int) -> np.ndarray:
    """(words of the longest, captions) ids, a column per caption."""
    size = corpus.size[captions]
    place = np.arange(size.max())[:, None]
    words = corpus.words[np.minimum(corpus.start[captions] + place, len(corpus.words) - 1)]
    return np.where(place < size, words, filler)


def _matches_of_others(corpus: _Corpus, grams: _Grams) -> np.ndarray:
    """(N,) n-grams of each caption, each clipped by its largest count in another one; without references.

    Only the caption with the largest count is clipped, by the second largest count.

    Example: "dog" occurs 3, 2 and 1 times in three captions. Their matches are 2, 2 and 1.
    """
    by_count = np.lexsort((grams.counts, grams.gram))
    gram, count = grams.gram[by_count], grams.counts[by_count]
    is_largest = np.diff(gram, append=-1) != 0
    second = np.where(np.diff(gram, prepend=-1) == 0, np.roll(count, 1), 0)
    return np.bincount(grams.caption[by_count], np.where(is_largest, second, count), len(corpus.size))


def _check(hypotheses: Sequence[Caption], references: References | None = None) -> None:
    """Raise the ValueErrors that the module's docstring lists."""
    if references is not None and len(references) != len(hypotheses):
        captions, images = counted(len(hypotheses), "caption"), counted(len(references), "image")
        raise ValueError(f"{captions} but references for {images}: one caption each")
    if not len(hypotheses):
        raise ValueError("no captions to score")
    for i, hypothesis in enumerate(hypotheses):
        refs: Sequence[Caption] = () if references is None else references[i]
        if references is not None and not len(refs):
            raise ValueError(f"image {i} has no reference caption")
        if any(isinstance(caption, str) for caption in (hypothesis, refs, *refs)):
            raise ValueError(f"image {i}: a caption must be a sequence of words, not one string; tokenise it first")
