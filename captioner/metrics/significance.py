"""Bootstrap intervals of scores, and a paired test of two systems.

Only the sample of images is random, so an interval does not cover other seeds or annotators. Images
are resampled with their CIDEr-D, whose idf remains that of the whole set. Everything is on the scale of
:func:`captioner.metrics.score_tokens`, 0..100 and CIDEr 0..1000; the same seed gives the same numbers.
"""

from collections.abc import Iterator

import numpy as np

from captioner.metrics.scores import NAMES, PerImage, corpus_scores

QUANTILES = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # of the intervals
MAX_DRAWS = 1 << 20  # images drawn at a time, in several rounds together: about 30 MB


def intervals(images: PerImage, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """95 % percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13) of the six corpus scores.

    N images are drawn with replacement `resamples` times; BLEU is computed from the summed counts of those drawn,
    ROUGE-L and CIDEr-D are their means. Returns {name: {"low": …, "high": …}}, the 2.5 % and 97.5 % quantiles.
    """
    scores = corpus_scores(_bootstrap(images.table(), resamples, seed), len(images.cider))  # (resamples, 6)
    low, high = np.quantile(scores, QUANTILES, axis=0)
    return _by_name(low=low, high=high)


def compare(
    first: PerImage, second: PerImage, resamples: int = 1000, rounds: int = 10_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Two systems on the same images, in the same order, with the same references: first − second.

    The interval is the paired bootstrap's (Koehn 2004): both systems are scored on the same draws of images. p is that
    of approximate randomisation (Noreen 1989; Riezler & Maxwell 2005): in each round the systems swap their captions
    of every image with probability ½, and p = (1 + rounds with |difference| ≥ the observed one) / (1 + rounds). It is
    not corrected for testing six scores.

    Returns:
        {name: {"first": …, "second": …, "difference": …, "low": …, "high": …, "p": …}}; identical systems have
        difference 0 and p = 1.
    """
    if len(first.cider) != len(second.cider):
        raise ValueError(f"{len(first.cider)} and {len(second.cider)} images: compare systems on the same ones")
    a, b, n = first.table(), second.table(), len(first.cider)  # (N, 12)
    scores_a, scores_b = first.corpus_scores(), second.corpus_scores()  # (6,)
    observed = scores_a - scores_b
    sums = _bootstrap(np.hstack([a, b]), resamples, seed)  # (resamples, 24)
    differences = corpus_scores(sums[:, : a.shape[1]], n) - corpus_scores(sums[:, a.shape[1] :], n)
    # Equal differences differ in their last digits if they were summed in another order.
    extreme = np.count_nonzero(abs(_swapped(a, b, rounds, seed)) >= abs(observed) * (1 - 1e-9), axis=0)
    p = (1 + extreme) / (1 + rounds)
    low, high = np.quantile(differences, QUANTILES, axis=0)
    return _by_name(first=scores_a, second=scores_b, difference=observed, low=low, high=high, p=p)


def _by_name(**columns: np.ndarray) -> dict[str, dict[str, float]]:
    """Columns of six values → {score: {column: value}}."""
    return {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(NAMES)}


def _bootstrap(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(N, S) rows of images → (resamples, S) sums of N rows drawn with replacement."""
    random, n, sums = np.random.default_rng(seed), len(table), []
    for size in _batches(resamples, n):
        drawn = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)  # each image was drawn
        sums.append(times.astype(float) @ table)
    return np.concatenate(sums)


def _swapped(a: np.ndarray, b: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """(N, S) rows of two systems → (rounds, 6) differences of their scores after random swaps."""
    random, n, results = np.random.default_rng(seed), len(a), []
    total_a, total_b, difference = a.sum(axis=0), b.sum(axis=0), b - a
    for size in _batches(rounds, n):
        coins = np.frombuffer(random.bytes(size * (n + 7 >> 3)), np.uint8).reshape(size, -1)  # a bit per image
        moved = np.unpackbits(coins, axis=1, count=n).astype(float) @ difference  # (size, S)
        results.append(corpus_scores(total_a + moved, n) - corpus_scores(total_b - moved, n))
    return np.concatenate(results)


def _batches(rounds: int, n: int) -> Iterator[int]:
    """Sizes of batches of rounds, with n images drawn in each round and up to MAX_DRAWS in a batch."""
    step = max(1, MAX_DRAWS // n)
    return (min(step, rounds - done) for done in range(0, rounds, step))
