"""Greedy, beam, diverse and constrained search and sampling over a step function; knows no model.

There is one loop, :func:`beam`. Rules (:mod:`captioner.decoding.constraints`) forbid words; a ``choose`` function takes
some of the possible continuations: :func:`likeliest`, :func:`in_turns` (words that must appear), :func:`diverse` or
:func:`drawn` (sampling). :func:`search` puts them together as a :class:`captioner.config.SearchConfig` asks.

Axes: B images, A of them still searched, R live beams of each (1 before the first word, K after it), V vocabulary,
M longest caption, L words said so far, C candidates, n captions asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioner.config import SearchConfig
from captioner.decoding import constraints as rules
from captioner.decoding.constraints import Rule

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, State], tuple[Tensor, State]]
MINUS_INFINITY = float("-inf")


class Ids(NamedTuple):
    """Words by their ids: what a search has to know of a vocabulary.

    Attributes:
        start, end: what every caption begins and ends with.
        never: are never said.
        bad_endings: no caption ends in them, where the config asks for it.
        prefix: every caption begins with them.
        must: every caption has them; different ones.
    """

    start: int
    end: int
    never: tuple[int, ...] = ()
    bad_endings: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    must: tuple[int, ...] = ()


class Found(NamedTuple):
    """The n best captions of each of B images: those that ended first, the better score first.

    Attributes:
        words: (B, n, M) ids without START and END, padded with END.
        lengths: (B, n) words in each.
        log_probs: (B, n) natural log-probability of the words and, where ended, of END, by the model alone: neither
            temperature nor the penalty of diverse search count.
        scores: (B, n) log-probability over the length penalty: what they are ranked by; −inf marks an empty place,
            where an image has fewer than n captions.
        ended: (B, n) bool; False for a beam cut off at the length limit.
        word_log_probs: (B, n, M + 1) the terms of log_probs: of each word and then, where ended, of END; 0 after them.
    """

    words: Tensor
    lengths: Tensor
    log_probs: Tensor
    scores: Tensor
    ended: Tensor
    word_log_probs: Tensor

    @classmethod
    def empty(cls, images: int, n: int, longest: int, end: int, device: torch.device) -> Found:
        """n empty places for each image."""
        nothing = torch.full((images, n), MINUS_INFINITY, device=device)
        zeros = torch.zeros((images, n), dtype=torch.long, device=device)
        words = torch.full((images, n, longest), end, device=device)
        return cls(words, zeros, nothing, nothing.clone(), zeros.bool(), nothing.new_zeros(images, n, longest + 1))

    def ranked(self) -> Tensor:
        """(B, n) places in the order of rank: what has ended first, the better score first."""
        by_score = self.scores.argsort(dim=1, descending=True, stable=True)
        return by_score.gather(1, self.ended.gather(1, by_score).int().argsort(dim=1, descending=True, stable=True))

    def best(self, n: int) -> Found:
        """The n best."""
        order = self.ranked()[:, :n]
        return Found(*(_take(part, order) for part in self))

    def joined(self, others: Found) -> Found:
        """The captions of both, image by image."""
        return Found(*(torch.cat(parts, dim=1) for parts in zip(self, others, strict=True)))

    def regrouped(self, size: int) -> Found:
        """The captions of every `size` images in a row as those of one: first the best of each, then the second."""
        return Found(*(part.unflatten(0, (-1, size)).transpose(1, 2).flatten(1, 2) for part in self))

    def different(self, size: int, n: int) -> Found:
        """n different captions: the best of every `size` that follow each other before the best of the next `size`."""
        same = (self.words.unsqueeze(1) == self.words.unsqueeze(2)).all(dim=3)  # (B, C, C)
        again = same.tril(-1).any(dim=2)
        kept = self._replace(scores=self.scores.masked_fill(again, MINUS_INFINITY), ended=self.ended & ~again)
        order = kept.ranked()
        turn = (order // size).masked_fill(kept.scores.gather(1, order) == MINUS_INFINITY, again.shape[1])
        order = order.gather(1, turn.argsort(dim=1, stable=True)[:, :n])
        return Found(*(_take(part, order) for part in kept))


class Beams(NamedTuple):
    """The live beams when the next word is chosen.

    Attributes:
        images: (A,) the numbers of the images still searched.
        log_probs: (A, R), in a diverse search less what the words have cost.
        said: (A, R, L) the words so far.
    """

    images: Tensor
    log_probs: Tensor
    said: Tensor


# choose(beams, log_probs (A * R, V), number) → scores, parents (0..R − 1) and words of up to `number` continuations of
# each image (A, C), in the order in which they are to be taken. A score is the parent's log-probability and the
# word's; −inf is no candidate. `number` is 2K, so that K are left when K of them end.
Choose = Callable[[Beams, Tensor, int], tuple[Tensor, Tensor, Tensor]]


def likeliest(beams: Beams, log_probs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable continuations: beam search."""
    # No beam has more than `number` of them, so first the best of each, then of those.
    each, words = log_probs.topk(min(number, log_probs.shape[1]), dim=1)  # (A * R, T)
    total = (beams.log_probs.reshape(-1, 1) + each).view(len(beams.images), -1)  # (A, R * T)
    scores, order = total.topk(min(number, total.shape[1]), dim=1)  # (A, C)
    return scores, order // each.shape[1], words.view(total.shape).gather(1, order)


def in_turns(must: Tensor) -> Choose:
    """The most probable continuations of beams that have said 0, 1, … W of the words `must` (W,), in turns.

    Dynamic beam allocation (Post and Vilar 2018): the continuations of each beam, and each beam with each word it
    still lacks, fall into W + 1 banks by how many of the words they have. The best of each bank are taken, then the
    second best, so that the banks share the beam equally and what one cannot use goes to the others.
    """

    def choose(beams: Beams, log_probs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        shape = beams.log_probs.shape
        each, words = (part.unflatten(0, shape) for part in log_probs.topk(min(number, log_probs.shape[1]), dim=1))
        forced = log_probs[:, must].unflatten(0, shape)  # (A, R, W)
        forced = forced.masked_fill((words.unsqueeze(-1) == must).any(2), MINUS_INFINITY)  # not the same one twice
        words = torch.cat([words, must.expand(*shape, -1)], dim=2)  # (A, R, T + W)
        scores = beams.log_probs.unsqueeze(2) + torch.cat([each, forced], dim=2)
        had = rules.said_of(must, beams.said)  # (A, R, W)
        bank = had.sum(2, keepdim=True) + ((words.unsqueeze(3) == must) & ~had.unsqueeze(2)).sum(3)

        scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
        bank = bank.flatten(1).gather(1, order).unsqueeze(2)
        banks = bank == torch.arange(len(must) + 1, device=must.device)  # (A, R * (T + W), W + 1)
        turn = (banks.cumsum(1) * banks).sum(2)
        turn = turn.masked_fill(scores == MINUS_INFINITY, turn.shape[1] + 1)  # what is not possible comes last
        first = turn.argsort(dim=1, stable=True)[:, :number]
        order = order.gather(1, first)
        return scores.gather(1, first), order // words.shape[2], words.flatten(1).gather(1, order)

    return choose


def diverse(choose: Choose, groups: int, strength: float) -> Choose:
    """Diverse beam search (Vijayakumar et al. 2018) with Hamming diversity.

    Every image stands `groups` times in a row, once for each group, and keeps doing so. The groups choose one after
    the other; a word costs `strength` (nats) each time that the groups before have taken it at this step, for good: the
    scores it returns are those less the costs.
    """

    def chosen(beams: Beams, log_probs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        each = log_probs.unflatten(0, (-1, groups, beams.log_probs.shape[1]))  # (A / G, G, R, V)
        cost = torch.zeros_like(each[:, 0, 0])  # (A / G, V)
        taken = []
        for g in range(groups):
            mine = Beams(*(part[g::groups] for part in beams))
            scores, parents, words = choose(mine, (each[:, g] - cost.unsqueeze(1)).flatten(0, 1), number)
            taken.append((scores, parents, words))
            first = slice(number // 2)
            cost = cost.scatter_add(1, words[:, first], strength * (scores[:, first] > MINUS_INFINITY).to(cost.dtype))
        scores, parents, words = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*taken, strict=True))
        return scores, parents, words

    return chosen


def drawn(uniforms: Tensor, config: SearchConfig) -> Choose:
    """One word drawn from the distribution: temperature first, then top-k, top-p and min-p, each on what is left.

    Args:
        uniforms: (B, M + 1) numbers in [0, 1): that of the image and the step decides the word, so that a caption
            does not depend on the images beside it. Multiples of 2⁻²³, which stay below 1 in float32.
        config: temperature, top_k, top_p (Holtzman et al. 2020), min_p (Nguyen et al. 2024).
    """

    def choose(beams: Beams, log_probs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        p, names = log_probs.topk(min(config.top_k, log_probs.shape[1])) if config.top_k else (log_probs, None)
        p = p.exp() if config.temperature == 1 else (p / config.temperature).softmax(dim=1)  # (A, V or k)
        if config.top_p < 1:  # the words of the tail together have at most 1 − top_p
            ascending = p.flip(1) if config.top_k else _sorted(p)
            upto = ascending.cumsum(dim=1)
            kept = torch.searchsorted(upto, (1 - config.top_p) * upto[:, -1:], right=True).clamp_(max=p.shape[1] - 1)
            p.masked_fill_(p < ascending.gather(1, kept), 0)
        if config.min_p:
            p.masked_fill_(p < config.min_p * p.amax(dim=1, keepdim=True), 0)
        upto = p.cumsum_(dim=1)
        u = uniforms[beams.images, beams.said.shape[2]].unsqueeze(1)  # (A, 1)
        words = torch.searchsorted(upto, u * upto[:, -1:], right=True).clamp_(max=p.shape[1] - 1)
        words = words if names is None else names.gather(1, words)
        return beams.log_probs + log_probs.gather(1, words), torch.zeros_like(words), words

    return choose


def _sorted(p: Tensor) -> Tensor:
    """Rows in ascending order; on a CPU by numpy, whose sort takes a tenth of the time of torch's."""
    return torch.from_numpy(np.sort(p.numpy(), axis=1)) if p.device.type == "cpu" else p.sort(dim=1).values


def beam(
    step: Step,
    state: State,
    context: State,
    *,
    start: int,
    end: int,
    width: int,
    n_best: int,
    config: SearchConfig,
    asked: Sequence[Rule] = (),
    choose: Choose = likeliest,
    together: int = 1,
) -> Found:
    """The loop of every search, batched over images; with width 1 and `likeliest` it is greedy search.

    At every step `choose` names 2K continuations of an image's K beams: those among the first K that end are finished,
    the first K of the others live on. An image is done once it has K finished captions, or no live beam can still
    overtake its n best. The beams still live at the length limit rank after the finished captions: where none has
    ended, they are the answer, but for those that the rules would not let end.

    Args:
        step: ``step(words (A · R,), state, context) -> log_probs (A · R, V), state``; the R rows of an image stand
            side by side, and `context` has a row for each image. The log-probabilities are written to.
        state: tensors with B rows before the first word; reordered as the beams are.
        context: tensors with B rows, constant over the steps, dropped with their image.
        start: id every caption begins with.
        end: id that ends a caption.
        width: K.
        n_best: n, up to K.
        config: length_norm and length_penalty, max_length (M).
        asked: the rules.
        choose: which continuations are taken.
        together: so many images that follow each other are done together.
    """
    images, device, longest = len(context[0]), context[0].device, config.max_length

    answer = Found.empty(images, n_best, longest, end, device)
    done = Found.empty(images, width, longest, end, device)
    active = torch.arange(images, device=device)
    live = torch.zeros((images, 1), device=device)  # (A, R) Beams.log_probs
    history = torch.full((images, 1, longest), end, device=device)  # (A, R, M)
    terms = torch.zeros((images, 1, longest + 1), device=device)  # (A, R, M + 1)
    words = torch.full((images,), start, device=device)  # (A * R,)

    for length in range(longest + 1):  # every live beam has `length` words
        log_probs, state = step(words, state, context)  # (A * R, V)
        beams = Beams(active, live, history[:, :, :length])
        for rule in asked:
            rule(log_probs, beams.said.flatten(0, 1))
        scores, parents, chosen = choose(beams, log_probs, 2 * width)  # (A, C)
        offsets = torch.arange(len(live), device=device).unsqueeze(1) * live.shape[1]  # (A, 1) first row of each
        term = log_probs[parents + offsets, chosen]
        ends = chosen == end

        # Those among the first K that end are finished.
        ending = scores[:, :width].masked_fill(~ends[:, :width], MINUS_INFINITY)
        parent = parents[:, :width]
        said = _take(terms, parent)
        said[:, :, length] = term[:, :width]
        lengths, ended = torch.full_like(parent, length), ending > MINUS_INFINITY
        total = said.sum(dim=2).masked_fill(~ended, MINUS_INFINITY)
        new = Found(_take(history, parent), lengths, total, ending / _norm(length + 1, config), ended, said)
        done = done.joined(new).best(width)
        if length == longest:  # a beam that ended now lives no longer
            live.scatter_reduce_(1, parent, torch.where(ended, MINUS_INFINITY, 0.0), "sum")
            break

        # The first K of the others live on.
        others = ends.int().argsort(dim=1, stable=True)[:, :width]
        live = scores.masked_fill(ends, MINUS_INFINITY).gather(1, others)
        parents, chosen = parents.gather(1, others), chosen.gather(1, others)
        history, terms = _take(history, parents), _take(terms, parents)
        history[:, :, length], terms[:, :, length] = chosen, term.gather(1, others)
        rows = parents + offsets  # (A, K) rows of the state

        # Log-probabilities only fall: a live beam scores at best what it has now, over the largest penalty.
        bound = live.amax(1) / _norm(longest + 1, config)
        finished = done.ended[:, -1] | (done.scores[:, n_best - 1] >= bound)
        if together > 1:
            live = live.masked_fill(finished.unsqueeze(1), MINUS_INFINITY)  # it waits for the others
            finished = finished.unflatten(0, (-1, together)).all(1).repeat_interleave(together)
        going = (~finished).nonzero()[:, 0]  # the one wait for the device
        left = len(going) < len(finished)
        if left:
            for part, result in zip(answer, done, strict=True):
                part[active] = result[:, :n_best]  # what goes on is written again later
            if len(going) == 0:
                return answer
            active, live, history, terms, chosen, rows = (
                part[going] for part in (active, live, history, terms, chosen, rows)
            )
            done = Found(*(part[going] for part in done))
        rows = rows.flatten()
        if left:
            context = _rows(context, going)
        state = _rows(state, rows)
        words = chosen.flatten()

    may_end = torch.zeros_like(log_probs)
    for rule in asked:
        rule(may_end, history.flatten(0, 1))
    live = live.masked_fill(may_end[:, end].view_as(live) == MINUS_INFINITY, MINUS_INFINITY)
    lengths, ended = torch.full_like(live, longest, dtype=torch.long), torch.zeros_like(live, dtype=torch.bool)
    cut = Found(history, lengths, terms.sum(dim=2), live / _norm(longest, config), ended, terms)
    for part, result in zip(answer, done.joined(cut).best(n_best), strict=True):
        part[active] = result
    return answer


def search(
    step: Step, state: State, context: State, ids: Ids, config: SearchConfig, keys: Sequence[int] | None = None
) -> Found:
    """Captions as `config` asks for them.

    Args:
        step, state, context: as for :func:`beam`.
        ids: the words that matter.
        config: how to search.
        keys: for sampling, an int ≥ 0 of each image, such as a checksum: with the seed it decides what is drawn.
    """
    device = context[0].device
    loop = partial(beam, step, start=ids.start, end=ids.end, config=config, asked=_rules(ids, config, device))
    if config.sample:
        assert keys is not None, "sampling needs a key for each image"
        uniforms = torch.stack([_uniforms(config, key, i) for key in keys for i in range(config.n_best)])
        state, context = (_repeated(parts, config.n_best) for parts in (state, context))
        found = loop(state, context, width=1, n_best=1, choose=drawn(uniforms.to(device), config))
        return found.regrouped(config.n_best).best(config.n_best)
    choose = in_turns(torch.tensor(ids.must, dtype=torch.long, device=device)) if ids.must else likeliest
    if config.groups == 1:
        return loop(state, context, width=config.beam, n_best=config.n_best, choose=choose)
    state, context = (_repeated(parts, config.groups) for parts in (state, context))
    found = loop(
        state,
        context,
        width=config.beam // config.groups,
        n_best=config.beam // config.groups,
        choose=diverse(choose, config.groups, config.diversity),
        together=config.groups,
    )
    found = found.regrouped(config.groups)
    scores = found.log_probs / _norm(found.lengths + found.ended, config)  # without the costs
    found = found._replace(scores=scores.masked_fill(found.scores == MINUS_INFINITY, MINUS_INFINITY))
    return found.different(config.groups, config.n_best).best(config.n_best)


def ensemble(members: Sequence[tuple[Step, State, State]]) -> tuple[Step, State, State]:
    """Several models that share a vocabulary as one: the mean of their probabilities at every step.

    Args:
        members: step, state and context of each, for the same images.
    """
    of_state, of_context = _places([state for _, state, _ in members]), _places([context for *_, context in members])

    def step(words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        after: State = ()
        each = []
        for (one, *_), mine, its in zip(members, of_state, of_context, strict=True):
            log_probs, new = one(words, state[mine], context[its])
            each.append(log_probs)
            after += new
        return torch.stack(each).logsumexp(dim=0) - math.log(len(each)), after

    return step, sum((state for _, state, _ in members), ()), sum((context for *_, context in members), ())


def _places(parts: Sequence[State]) -> list[slice]:
    """Where each tuple lies in all of them, one after the other."""
    upto = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return [slice(a, b) for a, b in pairwise(upto)]


def _rules(ids: Ids, config: SearchConfig, device: torch.device) -> list[Rule]:
    """The rules that `config` asks for."""

    def tensor(words: Sequence[int]) -> Tensor:
        return torch.tensor(words, dtype=torch.long, device=device)

    asked = [rules.never(tensor(ids.never))]
    if config.min_length:
        asked.append(rules.at_least(config.min_length, ids.end))
    if config.no_repeat_word:
        asked.append(rules.no_word_twice_in_a_row)
    if config.no_repeat_ngram:
        asked.append(rules.no_ngram_twice(config.no_repeat_ngram))
    if config.no_bad_ending:
        asked.append(rules.no_ending_in(tensor(ids.bad_endings), ids.end, config.max_length))
    if ids.must:
        asked.append(rules.all_of(tensor(ids.must), ids.end))
    return [rules.begin_with(ids.prefix, asked)] if ids.prefix else asked


def _uniforms(config: SearchConfig, key: int, caption: int) -> Tensor:
    """(M + 1,) multiples of 2⁻²³ in [0, 1), the same for the same seed, image and number of the caption."""
    random = np.random.default_rng((config.seed, key, caption))
    return torch.from_numpy(random.integers(2**23, size=config.max_length + 1)).float() / 2**23


def _norm(length: Any, config: SearchConfig) -> Any:
    """What the log-probability of |Y| words (an int, or a tensor of them), END among them, is divided by.

    gnmt: ``((5 + |Y|) / 6) ** length_penalty`` (Wu et al. 2016, equation 14); average: ``|Y|``.
    """
    return length if config.length_norm == "average" else ((5 + length) / 6) ** config.length_penalty


def _take(part: Tensor, order: Tensor) -> Tensor:
    """``out[a, i] = part[a, order[a, i]]`` for part (A, R) or (A, R, M), order (A, n)."""
    if part.dim() == 3:
        order = order.unsqueeze(2).expand(-1, -1, part.shape[2])
    return part.gather(1, order)


def _rows(parts: State, rows: Tensor) -> State:
    return tuple(part.index_select(0, rows) for part in parts)


def _repeated(parts: State, times: int) -> State:
    """Every row `times` times in a row."""
    return tuple(part.repeat_interleave(times, dim=0) for part in parts)
