"""What may follow what has been said: rules that a search asks at every step.

A rule is a function ``rule(log_probs, said)`` of the log-probabilities (N, V) of the next word and the words (N, L)
said so far, L the same for all. It writes −inf where a word may not follow, and nothing else: whatever the rules, the
log-probability of a caption stays the model's own. Rules are made by the functions of this module, know no model, and
combine in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], None]
FORBIDDEN = float("-inf")

# Words that hardly ever end a sentence ("a man riding a"); 0.7 % of the 35,000 captions of Flickr8k end in one, most of
# these as in "others look on". Not "by", "behind", "around", "up" and their like, in which many sentences end well.
_BAD_ENDINGS = """
a an the his its their my your our every each of to at with for from into onto in on upon over under through across
along between against toward towards beside near before after while and or but as than is are was were be being am has
have having very who which
"""
BAD_ENDINGS = tuple(_BAD_ENDINGS.split())


def never(words: Sequence[int] | Tensor) -> Rule:
    """None of `words` at all."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        log_probs[:, words] = FORBIDDEN

    return rule


def at_least(length: int, end: int) -> Rule:
    """No end before `length` words."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        if said.shape[1] < length:
            log_probs[:, end] = FORBIDDEN

    return rule


def no_word_twice_in_a_row(log_probs: Tensor, said: Tensor) -> None:
    """Not the last word again ("a red red hat")."""
    log_probs.scatter_(1, said[:, -1:], FORBIDDEN)


def no_ngram_twice(n: int) -> Rule:
    """No n words in a row that were said before in a row (Paulus et al. 2018, section 2.5); 1 is no word twice."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        if said.shape[1] < n:
            return
        grams = said.unfold(1, n, 1)  # (N, L - n + 1, n)
        again = (grams[:, :, :-1] == said[:, None, said.shape[1] - n + 1 :]).all(2)  # begun as it was begun before
        log_probs.scatter_add_(1, grams[:, :, -1], torch.where(again, FORBIDDEN, 0.0))

    return rule


def no_ending_in(words: Tensor, end: int, longest: int) -> Rule:
    """No end after one of `words` (W,), and none of them as the last word there is room for."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        if said.shape[1]:
            bad = torch.isin(said[:, -1], words)
            log_probs[:, end] += torch.where(bad, FORBIDDEN, 0.0)
        if said.shape[1] == longest - 1:
            log_probs[:, words] = FORBIDDEN

    return rule


def all_of(words: Tensor, end: int) -> Rule:
    """No end before every one of `words` (W,) was said."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        missing = ~said_of(words, said).all(-1)
        log_probs[:, end] += torch.where(missing, FORBIDDEN, 0.0)

    return rule


def said_of(words: Tensor, said: Tensor) -> Tensor:
    """(..., L) words said → (..., W) bool: which of `words` (W,) are among them."""
    return (said.unsqueeze(-1) == words).any(-2)


def begin_with(prefix: Sequence[int], then: Sequence[Rule]) -> Rule:
    """The words of `prefix`, whatever the other rules say; after them the rules `then`."""

    def rule(log_probs: Tensor, said: Tensor) -> None:
        length = said.shape[1]
        if length < len(prefix):
            kept = log_probs[:, prefix[length]].clone()
            log_probs.fill_(FORBIDDEN)
            log_probs[:, prefix[length]] = kept
        else:
            for each in then:
                each(log_probs, said)

    return rule
