"""Constraints of a search: functions that forbid some of the possible next words.

A constraint is called as ``constraint(log_probs, history)`` with the log-probabilities (N, V) of the next word and the
words so far (N, L), the same L in all rows. It writes −inf where a word may not follow and changes nothing else, so the
log-probability of a caption remains that of the model. The functions here become constraints when their other
arguments are bound, as in ``partial(forbid, words=[3])``; they combine in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Constraint = Callable[[Tensor, Tensor], None]

# Words that hardly ever end a sentence ("a man riding a"): 0.7 % of the 35,000 captions of Flickr8k end in one, most of
# them as in "others look on". "by", "behind", "around" and "up" are not among them: they end many correct sentences.
_BAD_ENDINGS = """
a an the his its their my your our every each of to at with for from into onto in on upon over under through across
along between against toward towards beside near before after while and or but as than is are was were be being am has
have having very who which
"""
BAD_ENDINGS = tuple(_BAD_ENDINGS.split())


def forbid(log_probs: Tensor, history: Tensor, words: Sequence[int] | Tensor) -> None:
    """None of `words` anywhere."""
    log_probs[:, words] = -math.inf


def min_length(log_probs: Tensor, history: Tensor, length: int, end: int) -> None:
    """No END before `length` words."""
    if history.shape[1] < length:
        log_probs[:, end] = -math.inf


def no_repeat_word(log_probs: Tensor, history: Tensor) -> None:
    """No word twice in a row ("a red red hat")."""
    log_probs.scatter_(1, history[:, -1:], -math.inf)


def no_repeat_ngram(log_probs: Tensor, history: Tensor, n: int) -> None:
    """No n-gram twice in a caption (Paulus et al. 2018, section 2.5); with n = 1 no word twice.

    Example, n = 2: after "a man and a", "man" is forbidden, since the bigram "a man" exists already.
    """
    if history.shape[1] < n:
        return
    ngrams = history.unfold(1, n, 1)  # (N, L - n + 1, n)
    begun = (ngrams[:, :, :-1] == history[:, None, history.shape[1] - n + 1 :]).all(2)  # (N, L - n + 1)
    log_probs.scatter_add_(1, ngrams[:, :, -1], torch.where(begun, -math.inf, 0.0))


def no_bad_ending(log_probs: Tensor, history: Tensor, words: Tensor, end: int, max_length: int) -> None:
    """No END after one of `words` (W,), and none of them as the last word before `max_length`."""
    if history.shape[1]:
        bad = torch.isin(history[:, -1], words)
        log_probs[:, end] += torch.where(bad, -math.inf, 0.0)
    if history.shape[1] == max_length - 1:
        log_probs[:, words] = -math.inf


def require(log_probs: Tensor, history: Tensor, words: Tensor, end: int) -> None:
    """No END before the caption contains each of `words` (W,)."""
    missing = ~contains(history, words).all(-1)
    log_probs[:, end] += torch.where(missing, -math.inf, 0.0)


def contains(history: Tensor, words: Tensor) -> Tensor:
    """(..., L) word ids, (W,) word ids → (..., W) bool: whether each of `words` is in the history."""
    return (history.unsqueeze(-1) == words).any(-2)


def begin_with(log_probs: Tensor, history: Tensor, prefix: Sequence[int], constraints: Sequence[Constraint]) -> None:
    """The words of `prefix` first, without other constraints, then `constraints`."""
    length = history.shape[1]
    if length < len(prefix):
        kept = log_probs[:, prefix[length]].clone()
        log_probs.fill_(-math.inf)
        log_probs[:, prefix[length]] = kept
    else:
        for constraint in constraints:
            constraint(log_probs, history)
