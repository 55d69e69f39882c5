"""How far chance could have moved a score: bootstrap intervals, and a paired test of two systems.

Chance here is the choice of images. Neither the training runs nor the reference writers are drawn again, so an interval
says nothing about another seed or other annotators. CIDEr-D keeps the idf of the whole set: images are drawn, document
frequencies are not counted again. Everything is on the scale of :func:`captioner.metrics.score`, 0..100 and CIDEr
0..1000, and the same seed gives the same numbers.
"""

from collections.abc import Iterator

import numpy as np

from captioner.metrics.scores import NAMES, PerImage, corpus_scores

PART = 1 << 20  # images drawn at a time, of several rounds together: some 30 MB


def intervals(
    images: PerImage, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13) of the six corpus scores.

    N images are drawn with replacement `resamples` times; BLEU is computed from the summed counts of those drawn,
    ROUGE-L and CIDEr-D are their means.

    Returns:
        {name: {"low": …, "high": …}}, the (1 ± level)/2 quantiles.
    """
    scores = corpus_scores(_resampled(images.table(), resamples, seed), len(images.cider))
    return {name: _interval(values, level) for name, values in zip(NAMES, scores.T, strict=True)}


def compare(
    first: PerImage,
    second: PerImage,
    resamples: int = 1000,
    rounds: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Two systems on the same images, in the same order, with the same references: first − second.

    The interval is the paired bootstrap's (Koehn 2004): both systems are scored on the same draws of images. p is that
    of approximate randomisation (Noreen 1989; Riezler & Maxwell 2005): in each round the systems swap their captions
    of every image with probability ½, and p = (1 + rounds with |difference| ≥ the one found) / (1 + rounds), how often
    systems that differ by chance alone would seem so far apart. The smallest possible p is 1 / (1 + rounds). Nothing
    corrects for looking at six scores.

    Returns:
        {name: {"difference": …, "low": …, "high": …, "p": …}}; identical systems have difference 0 and p = 1.
    """
    if len(first.cider) != len(second.cider):
        raise ValueError(f"{len(first.cider)} and {len(second.cider)} images: compare systems on the same ones")
    a, b, n = first.table(), second.table(), len(first.cider)
    found = corpus_scores(a.sum(axis=0), n) - corpus_scores(b.sum(axis=0), n)
    sums = _resampled(np.hstack([a, b]), resamples, seed)
    differences = corpus_scores(sums[:, : a.shape[1]], n) - corpus_scores(sums[:, a.shape[1] :], n)
    swapped = _swapped(a, b, rounds, seed)
    # Equal differences that were summed in another order differ in the last digits.
    extreme = np.count_nonzero(abs(swapped) >= abs(found) * (1 - 1e-9), axis=0)
    p = (1 + extreme) / (1 + rounds)
    return {
        name: {"difference": float(found[i]), **_interval(differences[:, i], level), "p": float(p[i])}
        for i, name in enumerate(NAMES)
    }


def _interval(values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}


def _resampled(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(N, S) rows of images → (resamples, S) sums of N rows drawn with replacement."""
    random, n, sums = np.random.default_rng(seed), len(table), []
    for some in _in_parts(resamples, n):
        drawn = random.integers(n, size=(some, n)) + n * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * n).reshape(some, n)
        sums.append(times.astype(float) @ table)
    return np.concatenate(sums)


def _swapped(a: np.ndarray, b: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """(N, S) rows of two systems → (rounds, 6) differences of their scores after random swaps."""
    random, n, results = np.random.default_rng(seed), len(a), []
    total_a, total_b, difference = a.sum(axis=0), b.sum(axis=0), b - a
    for some in _in_parts(rounds, n):
        coins = np.frombuffer(random.bytes(some * (n + 7 >> 3)), np.uint8).reshape(some, -1)
        moved = np.unpackbits(coins, axis=1, count=n).astype(float) @ difference
        results.append(corpus_scores(total_a + moved, n) - corpus_scores(total_b - moved, n))
    return np.concatenate(results)


def _in_parts(times: int, n: int) -> Iterator[int]:
    """Divide so many draws of n images into parts that fit in memory."""
    step = max(1, PART // n)
    return (min(step, times - done) for done in range(0, times, step))
