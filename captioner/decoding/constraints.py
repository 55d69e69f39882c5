"""Constraints of a search: functions that forbid some of the possible next words.

A constraint is a function ``constraint(log_probs, history)`` of the log-probabilities (N, V) of the next word and of
the words so far (N, L), with the same L in all rows. It writes −inf where a word may not follow and changes nothing
else, so the log-probability of a caption remains that of the model. Constraints know no model and combine in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Constraint = Callable[[Tensor, Tensor], None]

# Words that hardly ever end a sentence ("a man riding a"): 0.7 % of the 35,000 captions of Flickr8k end in one, most of
# them as in "others look on". "by", "behind", "around" and "up" are not among them: many sentences end well in these.
_BAD_ENDINGS = """
a an the his its their my your our every each of to at with for from into onto in on upon over under through across
along between against toward towards beside near before after while and or but as than is are was were be being am has
have having very who which
"""
BAD_ENDINGS = tuple(_BAD_ENDINGS.split())


def forbid(words: Sequence[int] | Tensor) -> Constraint:
    """None of `words` anywhere."""

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        log_probs[:, words] = -math.inf

    return constraint


def min_length(length: int, end: int) -> Constraint:
    """No END before `length` words."""

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        if history.shape[1] < length:
            log_probs[:, end] = -math.inf

    return constraint


def no_repeat_word(log_probs: Tensor, history: Tensor) -> None:
    """No word twice in a row ("a red red hat")."""
    log_probs.scatter_(1, history[:, -1:], -math.inf)


def no_repeat_ngram(n: int) -> Constraint:
    """No n-gram twice in a caption (Paulus et al. 2018, section 2.5); with n = 1 no word twice.

    Example, n = 2: after "a man and a", "man" is forbidden, since the bigram "a man" exists already.
    """

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        if history.shape[1] < n:
            return
        ngrams = history.unfold(1, n, 1)  # (N, L - n + 1, n)
        begun = (ngrams[:, :, :-1] == history[:, None, history.shape[1] - n + 1 :]).all(2)  # (N, L - n + 1)
        log_probs.scatter_add_(1, ngrams[:, :, -1], torch.where(begun, -math.inf, 0.0))

    return constraint


def no_bad_ending(words: Tensor, end: int, max_length: int) -> Constraint:
    """No END after one of `words` (W,), and none of them as the last word before `max_length`."""

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        length = history.shape[1]
        if length:
            bad = torch.isin(history[:, -1], words)
            log_probs[:, end] += torch.where(bad, -math.inf, 0.0)
        if length == max_length - 1:
            log_probs[:, words] = -math.inf

    return constraint


def require(words: Tensor, end: int) -> Constraint:
    """No END before the caption contains each of `words` (W,)."""

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        missing = ~contains(history, words).all(-1)
        log_probs[:, end] += torch.where(missing, -math.inf, 0.0)

    return constraint


def contains(history: Tensor, words: Tensor) -> Tensor:
    """(..., L) word ids, (W,) word ids → (..., W) bool: whether each of `words` is in the history."""
    return (history.unsqueeze(-1) == words).any(-2)


def begin_with(prefix: Sequence[int], constraints: Sequence[Constraint]) -> Constraint:
    """First the words of `prefix`, which no other constraint restricts, then `constraints`."""

    def constraint(log_probs: Tensor, history: Tensor) -> None:
        length = history.shape[1]
        if length < len(prefix):
            kept = log_probs[:, prefix[length]].clone()
            log_probs.fill_(-math.inf)
            log_probs[:, prefix[length]] = kept
        else:
            for each in constraints:
                each(log_probs, history)

    return constraint
