"""Beam search over a step function; knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.config import SearchConfig

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, State], tuple[Tensor, State]]
MINUS_INFINITY = float("-inf")


class Found(NamedTuple):
    """The n best captions of each of B pictures: those that ended first, the better score first.

    Attributes:
        words: (B, n, M) ids without START and END, padded with END.
        lengths: (B, n) words in each.
        log_probs: (B, n) natural log-probability of the words and, where ended, of END.
        scores: (B, n) log-probability over the length penalty: what they are ranked by; −inf marks an empty place,
            where a picture has fewer than n captions.
        ended: (B, n) bool; False for a beam cut off at the length limit.
    """

    words: Tensor
    lengths: Tensor
    log_probs: Tensor
    scores: Tensor
    ended: Tensor

    @classmethod
    def empty(cls, pictures: int, n: int, longest: int, end: int, device: torch.device) -> Found:
        """n empty places for each picture."""
        nothing = torch.full((pictures, n), MINUS_INFINITY, device=device)
        zeros = torch.zeros((pictures, n), dtype=torch.long, device=device)
        words = torch.full((pictures, n, longest), end, device=device)
        return cls(words, zeros, nothing, nothing.clone(), zeros.bool())

    def best(self, others: Found, n: int) -> Found:
        """The n best of both."""
        both = Found(*(torch.cat(parts, dim=1) for parts in zip(self, others, strict=True)))
        by_score = both.scores.argsort(dim=1, descending=True, stable=True)
        ended_first = both.ended.gather(1, by_score).int().argsort(dim=1, descending=True, stable=True)
        order = by_score.gather(1, ended_first)[:, :n]
        return Found(*(_take(part, order) for part in both))


def _take(part: Tensor, order: Tensor) -> Tensor:
    """``out[a, i] = part[a, order[a, i]]`` for part (A, R) or (A, R, M), order (A, n)."""
    if part.dim() == 3:
        order = order.unsqueeze(2).expand(-1, -1, part.shape[2])
    return part.gather(1, order)


def _rows(parts: State, rows: Tensor) -> State:
    return tuple(part.index_select(0, rows) for part in parts)


def _penalty(length: int, alpha: float) -> float:
    """GNMT's length penalty ``((5 + |Y|) / 6) ** alpha`` (Wu et al. 2016, equation 14); |Y| counts END."""
    return ((5 + length) / 6) ** alpha


def beam(
    step: Step, state: State, context: State, *, start: int, end: int, banned: Sequence[int], config: SearchConfig
) -> Found:
    """Batched beam search; width 1 is greedy search.

    At every step the 2K best continuations of a picture's K beams are looked at: those among the first K that end are
    finished, the K best of the others live on. A picture is done once it has K finished captions, or no live beam can
    still overtake its n best. The beams still live at the length limit rank after the finished captions: where none
    has ended, they are the answer.

    Args:
        step: ``step(words (N,), state, context) -> log_probs (N, V), state``; row i belongs to beam i.
        state: tensors with B rows before the first word; reordered as the beams are.
        context: tensors with B rows, constant over the steps: repeated for the beams, dropped with their picture.
        start: id every caption begins with.
        end: id that ends a caption.
        banned: ids that are never produced.
        config: beam (K), n_best (n), length_penalty, max_length (M).
    """
    width, n_best, longest, alpha = config.beam, config.n_best, config.max_length, config.length_penalty
    pictures, device = len(context[0]), context[0].device
    never = torch.tensor(list(banned), dtype=torch.long, device=device)

    answer = Found.empty(pictures, n_best, longest, end, device)
    done = Found.empty(pictures, width, longest, end, device)
    # A pictures are still searched, `active` are their numbers; each has R live beams: 1 before the first word, then K.
    active = torch.arange(pictures, device=device)
    live = torch.zeros((pictures, 1), device=device)  # (A, R) log-probabilities
    history = torch.full((pictures, 1, longest), end, device=device)  # (A, R, M)
    words = torch.full((pictures,), start, device=device)  # (A * R,)

    for length in range(longest + 1):  # every live beam has `length` words
        log_probs, state = step(words, state, context)  # (A * R, V)
        log_probs[:, never] = MINUS_INFINITY
        beams = live.shape[1]

        # The 2K best continuations: no beam has more than 2K of them, so first the best of each, then of those.
        each, each_word = log_probs.topk(min(2 * width, log_probs.shape[1]), dim=1)  # (A * R, <= 2K)
        total = (live.flatten().unsqueeze(1) + each).view(len(live), -1)  # (A, R * <= 2K)
        candidates, order = total.topk(min(2 * width, total.shape[1]), dim=1)  # (A, <= 2K)
        parents, chosen = order // each.shape[1], each_word.view(len(live), -1).gather(1, order)

        # Those among the first K that end are finished.
        ending = candidates[:, :width].masked_fill(chosen[:, :width] != end, MINUS_INFINITY)
        ends = ending > MINUS_INFINITY
        if ends.any():
            parent = parents[:, :width]
            lengths = torch.full_like(parent, length)
            scores = ending / _penalty(length + 1, alpha)
            done = done.best(Found(_take(history, parent), lengths, ending, scores, ends), width)
            if length == longest:  # a beam that ended now lives no longer
                live.scatter_reduce_(1, parent, torch.where(ends, MINUS_INFINITY, 0.0), "sum")
        if length == longest:
            break

        # The K best of the others live on.
        others = candidates.masked_fill(chosen == end, MINUS_INFINITY)
        live, order = others.topk(min(width, others.shape[1]), dim=1)
        parents, chosen = parents.gather(1, order), chosen.gather(1, order)
        history = _take(history, parents)
        history[:, :, length] = chosen
        rows = parents + torch.arange(len(live), device=device).unsqueeze(1) * beams  # (A, K) rows of the state

        # Log-probabilities only fall: a live beam scores at best what it has now, over the largest penalty.
        bound = live[:, 0] / _penalty(longest + 1, alpha)
        finished = done.ended[:, -1] | (done.scores[:, n_best - 1] >= bound)
        if finished.any():
            for part, result in zip(answer, done, strict=True):
                part[active[finished]] = result[finished, :n_best]
            going = (~finished).nonzero()[:, 0]
            if len(going) == 0:
                return answer
            active, live, history, chosen, rows = (part[going] for part in (active, live, history, chosen, rows))
            done = Found(*(part[going] for part in done))
        rows = rows.flatten()
        if live.shape[1] != beams or finished.any():  # else each row still belongs to the same picture
            context = _rows(context, rows)
        state = _rows(state, rows)
        words = chosen.flatten()

    lengths = torch.full_like(live, longest, dtype=torch.long)
    cut = Found(history, lengths, live, live / _penalty(longest, alpha), torch.zeros_like(live, dtype=torch.bool))
    for part, result in zip(answer, done.best(cut, n_best), strict=True):
        part[active] = result
    return answer
