"""How likely a caption is right, by its perplexity: fitted on captioned images, stored in the checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from captioner.config import SearchConfig
from captioner.errors import UserError, counted, one_line

UNSURE = 0.5  # a caption of a lower confidence is marked: it is likelier wrong than right
RIGHT = 40.0  # CIDEr (times 100) from which a caption counts as right; docs/confidence.md compares it with looking
FOLDS = 5
STEPS = 30  # of Newton's method, which needs about five
RIDGE = 1e-2  # penalty on the squared coefficients, in captions: they stay finite where no caption is on the wrong side
DEFAULTS = asdict(SearchConfig())


@dataclass(frozen=True)
class Calibration:
    """The probability that the best caption of an image is right, for one model and one search.

    ``confidence = 1 / (1 + exp(slope · ln(perplexity) − intercept))``: logistic regression on the mean log-probability
    of the words, as Platt (1999) calibrates classifiers. It falls with the perplexity.

    Attributes:
        intercept, slope: the coefficients; the slope is more than 0.
        cider: a caption is right if its CIDEr (times 100) is at least this.
        images: how many it was fitted on.
        search: the fields of :class:`SearchConfig` of their captions.
    """

    intercept: float
    slope: float
    cider: float
    images: int
    search: Mapping[str, Any]

    def confidence(self, perplexity: float) -> float:
        """The probability, 0..1, that a caption of this perplexity is right."""
        return 0.5 * (1 + math.tanh((self.intercept - self.slope * math.log(perplexity)) / 2))  # exp would overflow

    def differences(self, search: SearchConfig) -> list[str]:
        """What a search, with its `max_length`, has other than that of the calibration, for messages.

        n_best does not count: it does not change the best caption.
        """
        theirs = {**DEFAULTS, **self.search}
        ours = {name: value for name, value in asdict(search).items() if name != "n_best"}
        return [f"{n} is {theirs[n]} there and {value} here" for n, value in ours.items() if theirs[n] != value]


def fit(perplexities: Sequence[float], right: Sequence[bool], cider: float, search: SearchConfig) -> Calibration:
    """Logistic regression of `right` on the logarithm of the perplexity, by Newton's method.

    UserError if captions of a higher perplexity are not right less often: it says nothing then.
    """
    x, y = np.column_stack([np.ones(len(perplexities)), np.log(perplexities)]), np.asarray(right, float)
    w = np.zeros(2)
    for _ in range(STEPS):
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2)
        w -= np.linalg.solve(hessian, x.T @ (p - y) + RIDGE * w)
    if not w[1] < 0:
        raise UserError(
            f"of {counted(len(y), 'caption')} those with a higher perplexity are not right less often: use more images"
        )
    return Calibration(float(w[0]), -float(w[1]), cider, len(y), asdict(search))


def cross_validated(perplexities: Sequence[float], right: Sequence[bool], like: Calibration) -> list[float]:
    """The confidence of each caption by a calibration on the captions outside its fold, one of FOLDS random ones."""
    x, y = np.asarray(perplexities), np.asarray(right)
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    search = SearchConfig(**like.search)
    fits = [fit(x[fold != n], y[fold != n], like.cider, search) for n in range(FOLDS)]
    return [fits[n].confidence(each) for n, each in zip(fold, perplexities, strict=True)]


def parse(path: str | os.PathLike, value: Any) -> Calibration | None:
    """The calibration in the header of a checkpoint; None if it has none, UserError if it is invalid."""
    if value is None:
        return None
    try:
        found = Calibration(**value)
        for number in (found.intercept, found.slope, found.cider, found.images):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < 1e6:
                raise ValueError(f"{str(number)[:60]!r} is not a number that it can have")
        if found.slope <= 0 or not isinstance(found.search, dict):
            raise ValueError("the slope is not more than 0, or search is not an object")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its calibration is invalid ({one_line(error)}): run captioner calibrate again"
        ) from None
    return found
