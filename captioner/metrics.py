"""How close captions come to references: BLEU, ROUGE-L and CIDEr-D with coco-caption's numbers, without Java.

Everything here is a pure function of words already tokenised. ``references`` holds N images with one or more captions
each (any number), ``hypotheses`` holds N captions; both in the same order. A caption is a sequence of words and may be
empty. No image at all, different N, an image without references or a string where words are expected raise
``ValueError``. Single functions return coco-caption's own scale (0 to 1, CIDEr-D 0 to 10); :func:`score` returns what
papers print (times 100).
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from captioner import __version__

Caption = Sequence[str]
References = Sequence[Sequence[Caption]]
NGram = tuple[str, ...]

TINY, SMALL = 1e-15, 1e-9  # coco-caption's guards against 0/0 in BLEU; they are part of its numbers
BETA = 1.2  # ROUGE-L: recall weighs more than precision
SIGMA = 6.0  # CIDEr-D: tolerance for a difference in length, in words
CIDER_ORDER = 4


def bleu(references: References, hypotheses: Sequence[Caption], order: int = 4) -> list[float]:
    """Corpus BLEU-1 to BLEU-``order`` (Papineni et al. 2002), each in 0..1; not the mean of per-image scores.

    Over the whole corpus, with c words in the hypotheses and r in the references closest in length (of two equally
    close ones the shorter)::

        p_k    = (matches of order k, clipped by the largest count in any one reference + 1e-15) / (n-grams + 1e-9)
        BLEU_k = (p_1 · … · p_k)^(1/k) · min(1, exp(1 − r/c))
    """
    _check(references, hypotheses)
    matches, guesses = [0] * order, [0] * order
    c = r = 0
    for refs, hypothesis in zip(references, hypotheses, strict=True):
        c += len(hypothesis)
        r += min((abs(len(ref) - len(hypothesis)), len(ref)) for ref in refs)[1]
        ref_counts = [_ngrams(ref, order) for ref in refs]
        for k, counts in enumerate(_ngrams(hypothesis, order)):
            guesses[k] += counts.total()
            matches[k] += sum(min(n, max(ref[k].get(gram, 0) for ref in ref_counts)) for gram, n in counts.items())
    ratio = (c + TINY) / (r + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for k in range(order):
        product *= (matches[k] + TINY) / (guesses[k] + SMALL)
        scores.append(brevity * product ** (1 / (k + 1)))
    return scores


def nltk_bleu(references: References, hypotheses: Sequence[Caption]) -> list[float]:
    """BLEU-1 to BLEU-4 by ``nltk.translate.bleu_score.corpus_bleu`` without smoothing, 0..1: a check on :func:`bleu`.

    Both clip alike and choose the same reference length. They agree to 1e-6 unless, by definition,

    - a caption is shorter than n words: nltk still counts one n-gram for it, so its BLEU-n and above are lower;
    - an order has no match in the whole corpus: nltk, without the constants 1e-15 and 1e-9, gives nearly (1e-77 or
      less) or exactly 0, :func:`bleu` a little more (some 1e-5).
    """
    from nltk.translate.bleu_score import corpus_bleu

    _check(references, hypotheses)
    weights = [(1 / n,) * n for n in range(1, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an order without a match; documented above
        return [float(value) for value in corpus_bleu(references, hypotheses, weights=weights)]


def rouge_l(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """ROUGE-L of each image (Lin 2004), (N,) in 0..1; the corpus score is the mean.

    With L the longest common subsequence of words, P = max L/|hypothesis| and R = max L/|reference|, each maximised
    over the references on its own, F = (1 + β²)·P·R / (R + β²·P), β = 1.2. An empty caption counts as one empty word,
    as in coco-caption: 0 against anything but another empty caption.
    """
    _check(references, hypotheses)
    scores = np.zeros(len(hypotheses))
    for i, (refs, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        words = hypothesis or [""]
        common = [(_common_subsequence(words, ref or [""]), max(1, len(ref))) for ref in refs]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / size for length, size in common)
        if precision > 0:  # then recall is too
            scores[i] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def cider_d(references: References, hypotheses: Sequence[Caption]) -> np.ndarray:
    """CIDEr-D of each image (Vedantam et al. 2015, section 5), (N,) in 0..10; the corpus score is the mean.

    With h and r the counts of each n-gram times its idf = ln N − ln max(1, images with it in any reference), and Δ the
    difference in the number of bigrams::

        CIDEr-D = 10 · mean over n = 1..4 and references of  Σ min(h, r)·r / (‖h‖·‖r‖) · exp(−Δ² / 2σ²),  σ = 6

    The idf comes from ``references``, so scores on different sets of images are not comparable; N = 1 gives 0.
    """
    _check(references, hypotheses)
    log_n = math.log(len(references))
    ref_counts = [[_ngrams(ref, CIDER_ORDER) for ref in refs] for refs in references]
    df: Counter[NGram] = Counter()
    for image in ref_counts:
        df.update({gram for ref in image for counts in ref for gram in counts})
    idf = {gram: log_n - math.log(images) for gram, images in df.items()}

    def weigh(counts: Counter[NGram]) -> tuple[dict[NGram, float], float]:
        vector = {gram: n * idf.get(gram, log_n) for gram, n in counts.items()}
        return vector, math.sqrt(sum([value * value for value in vector.values()]))

    scores = np.zeros(len(hypotheses))
    for i, (refs, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        hyp_vectors = [weigh(counts) for counts in _ngrams(hypothesis, CIDER_ORDER)]
        total = 0.0
        for ref, ref_orders in zip(refs, ref_counts[i], strict=True):
            delta = len(hypothesis) - len(ref)  # also in bigrams, unless one is empty and nothing is shared
            similarity = 0.0
            for (h, h_norm), (r, r_norm) in zip(hyp_vectors, map(weigh, ref_orders), strict=True):
                if h_norm and r_norm:
                    shared = sum([min(h[gram], r[gram]) * r[gram] for gram in h.keys() & r.keys()])
                    similarity += shared / (h_norm * r_norm)
            total += similarity * math.exp(-(delta**2) / (2 * SIGMA**2))
        scores[i] = 10 * total / (CIDER_ORDER * len(refs))
    return scores


def distinct(hypotheses: Sequence[Caption]) -> float:
    """Share of distinct captions, 0..1: one caption for every image gives 1/N, a different one for each gives 1."""
    if not hypotheses:
        raise ValueError("no captions to score")
    return len({tuple(words) for words in hypotheses}) / len(hypotheses)


def score(references: References, hypotheses: Sequence[Caption], tokenizer: str) -> dict[str, Any]:
    """Every number that is reported, in full precision, with the signature that makes it comparable.

    Scores are 100 times coco-caption's (its CIDEr of 0.52 is 52, and a perfect caption reaches 1000), ``distinct`` is
    in per cent, ``mean_length`` in words. ``tokenizer`` names how the words were made and goes into the signature.
    """
    ours, theirs = bleu(references, hypotheses), nltk_bleu(references, hypotheses)
    sizes = [len(refs) for refs in references]
    refs = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    return {
        **{f"BLEU-{n}": 100 * value for n, value in enumerate(ours, start=1)},
        "ROUGE-L": 100 * float(rouge_l(references, hypotheses).mean()),
        "CIDEr": 100 * float(cider_d(references, hypotheses).mean()),
        "distinct": 100 * distinct(hypotheses),
        "mean_length": sum(map(len, hypotheses)) / len(hypotheses),
        "images": len(hypotheses),
        "nltk": {f"BLEU-{n}": 100 * value for n, value in enumerate(theirs, start=1)},
        "signature": f"captioner {__version__} | tokenizer:{tokenizer} | refs:{refs} | images:{len(hypotheses)}"
        " | scale:0-100 | BLEU, ROUGE-L, CIDEr-D as coco-caption",
    }


def _check(references: References, hypotheses: Sequence[Caption]) -> None:
    """Refuse, by position, what cannot be scored."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)} images: one caption each")
    if not len(hypotheses):
        raise ValueError("no captions to score")
    for i, (refs, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not len(refs):
            raise ValueError(f"image {i} has no reference caption")
        if any(isinstance(caption, str) for caption in (hypothesis, refs, *refs)):
            raise ValueError(f"image {i}: a caption must be a sequence of words, not one string; tokenise it first")


def _ngrams(words: Caption, order: int) -> list[Counter[NGram]]:
    """Counts of the n-grams for n = 1..order."""
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, order + 1)]


def _common_subsequence(a: Caption, b: Caption) -> int:
    """Length of the longest common subsequence, one row of the table in the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}  # word → the bits of its positions in a
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = full = (1 << len(a)) - 1  # bit i is 0 where the row steps up between a[:i] and a[:i + 1]
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()
