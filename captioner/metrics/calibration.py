"""Calibration: a confidence is calibrated if of the captions with confidence 0.7 seven in ten are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from captioner.errors import counted

BINS = 10  # of equal numbers of captions
DRAWS = 1000  # of outcomes, for the error of exact confidences


class Reliability(NamedTuple):
    """N captions in bins of (nearly) equal numbers, by their confidence, lowest first."""

    confidence: np.ndarray  # (bins,) mean confidence, 0..1
    right: np.ndarray  # (bins,) share of right captions, 0..1
    captions: np.ndarray  # (bins,) number of captions

    @property
    def error(self) -> float:
        """The expected calibration error, ``Σ captions / N · |right − confidence|`` over the bins, 0..1."""
        return float(self.captions @ abs(self.right - self.confidence) / self.captions.sum())


def reliability(confidences: Any, right: Any, bins: int = BINS) -> Reliability:
    """The reliability curve of N confidences and of which captions are right; its `error` is the ECE.

    Naeini et al. 2015 and Guo et al. 2017 ("On Calibration of Modern Neural Networks", equation 3) define the expected
    calibration error; here the bins are of equal mass, not of equal width (Nixon et al. 2019). Captions of one
    confidence keep their order, so that which bin they fall into does not depend on whether they are right.
    """
    order = np.argsort(confidences, kind="stable")
    groups = [part for part in np.array_split(order, bins) if len(part)]
    means = [[np.asarray(values, float)[part].mean() for part in groups] for values in (confidences, right)]
    return Reliability(np.array(means[0]), np.array(means[1]), np.array([len(part) for part in groups]))


def error_of_exact(confidences: Any, bins: int = BINS) -> tuple[float, float]:
    """Mean and 95 % quantile of the ECE that exact confidences have by chance, with as many captions.

    Each caption is right with a probability that is its confidence, in DRAWS draws with a fixed seed.
    """
    p = np.asarray(confidences, float)
    random = np.random.default_rng(0)
    errors = [reliability(p, random.random(len(p)) < p, bins).error for _ in range(DRAWS)]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def summary(confidences: Any, right: Any, bins: int = BINS) -> dict[str, Any]:
    """The calibration of N captions as plain values for JSON, all in 0..1.

    ``ece`` is the expected calibration error, ``ece_of_exact`` and ``ece_of_exact_95`` those of
    :func:`error_of_exact`, ``curve`` the mean confidence, the share of right captions and the number of captions of
    each bin.
    """
    curve = reliability(confidences, right, bins)
    mean, most = error_of_exact(confidences, bins)
    bins_of = zip(*(values.tolist() for values in curve), strict=True)
    return {
        "captions": len(confidences),
        "right": float(np.mean(right)),
        "confidence": float(np.mean(confidences)),
        "ece": curve.error,
        "ece_of_exact": mean,
        "ece_of_exact_95": most,
        "curve": [dict(zip(Reliability._fields, one, strict=True)) for one in bins_of],
    }


def show_error(found: Mapping[str, Any]) -> str:
    """One line for :func:`summary`: the error, and what of it is chance."""
    chance = "exact confidences have {ece_of_exact:.3f} by chance, 95 % of the time at most {ece_of_exact_95:.3f}"
    captions = counted(found["captions"], "caption")
    return f"expected calibration error {found['ece']:.3f} of {captions} ({chance.format(**found)})"
