"""Greedy, beam, diverse and constrained search, and sampling, over a step function; docs/search.md describes them.

Axes: B images, A of them still active, R live beams of each (1 before the first word, K after it), V vocabulary,
M maximal length, L words so far, C candidates, n captions returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioner.config import MAX_LENGTH, SearchConfig
from captioner.decoding.constraints import (
    Constraint,
    begin_with,
    contains,
    forbid,
    min_length,
    no_bad_ending,
    no_repeat_ngram,
    no_repeat_word,
    require,
)

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, State], tuple[Tensor, State]]

LARGEST = 512  # probabilities of a row that are sorted first in top-p sampling


class Ids(NamedTuple):
    """The word ids that a search needs to know."""

    start: int
    end: int
    banned: tuple[int, ...] = ()  # in no caption
    bad_endings: tuple[int, ...] = ()  # last word of no caption, where the config has no_bad_ending
    prefix: tuple[int, ...] = ()  # first words of every caption
    must: tuple[int, ...] = ()  # in every caption; without repetitions


class Hypotheses(NamedTuple):
    """The n best captions of each of B images: those that ended first, then by score, best first.

    Log-probabilities are those of the model alone: temperature and diversity do not change them.
    """

    words: Tensor  # (B, n, M) ids without START and END, padded with END
    lengths: Tensor  # (B, n) number of words
    log_probs: Tensor  # (B, n) natural log-probability of the words and, where ended, of END
    scores: Tensor  # (B, n) log-probability over the length norm; −inf marks an empty place
    ended: Tensor  # (B, n) bool; False for a caption cut off at the maximal length
    word_log_probs: Tensor  # (B, n, M + 1) the terms of log_probs: one a word, then, where ended, END's; then 0

    @classmethod
    def empty(cls, images: int, n: int, max_length: int, end: int, device: torch.device) -> Hypotheses:
        """n empty places for each image."""
        scores = torch.full((images, n), -math.inf, device=device)
        zeros = torch.zeros((images, n), dtype=torch.long, device=device)
        words = torch.full((images, n, max_length), end, device=device)
        return cls(words, zeros, scores, scores.clone(), zeros.bool(), scores.new_zeros(images, n, max_length + 1))

    def ranking(self) -> Tensor:
        """(B, n) places from best to worst: ended captions first, then by score."""
        by_score = self.scores.argsort(dim=1, descending=True, stable=True)
        return by_score.gather(1, self.ended.gather(1, by_score).int().argsort(dim=1, descending=True, stable=True))

    def top(self, n: int) -> Hypotheses:
        """The n best."""
        order = self.ranking()[:, :n]
        return Hypotheses(*(_take(part, order) for part in self))

    def concat(self, others: Hypotheses) -> Hypotheses:
        """The captions of both, image by image."""
        return Hypotheses(*(torch.cat(parts, dim=1) for parts in zip(self, others, strict=True)))

    def merge_images(self, size: int) -> Hypotheses:
        """`size` images in a row become one, (B · size, n) → (B, n · size): the best of each first, then the second."""
        return Hypotheses(*(part.unflatten(0, (-1, size)).transpose(1, 2).flatten(1, 2) for part in self))

    def distinct(self, groups: int, n: int) -> Hypotheses:
        """n distinct captions of merged groups: the groups' best, then their second best and so on, each by rank.

        Example: two groups found a, b and a, c. Merged they are [a, a, b, c]. The second a becomes an empty place, so
        n = 2 gives a, the best of a group, and the better of b and c, the second best; an empty place comes last.
        """
        same = (self.words.unsqueeze(1) == self.words.unsqueeze(2)).all(dim=3)  # (B, C, C)
        repeated = same.tril(-1).any(dim=2)  # (B, C)
        kept = self._replace(scores=self.scores.masked_fill(repeated, -math.inf), ended=self.ended & ~repeated)
        order = kept.ranking()  # (B, C)
        tier = order // groups  # 0 for the best of a group
        tier = tier.masked_fill(kept.scores.gather(1, order) == -math.inf, order.shape[1])
        order = order.gather(1, tier.argsort(dim=1, stable=True)[:, :n])  # (B, n)
        return Hypotheses(*(_take(part, order) for part in kept))


class Beams(NamedTuple):
    """The live beams when the next word is chosen."""

    images: Tensor  # (A,) indices of the active images
    log_probs: Tensor  # (A, R); in diverse search minus the costs of the words
    history: Tensor  # (A, R, L) the words so far


# choose(beams, log_probs (A * R, V), number) → scores, parents (0..R − 1) and words, each (A, C), of up to `number`
# continuations of each image, in the order of preference. A score is the log-probability of the parent and the word
# together; −inf is no continuation. `number` is 2K, so that K are left if K of them end.
Continuations = tuple[Tensor, Tensor, Tensor]
Choose = Callable[[Beams, Tensor, int], Continuations]


def topk(beams: Beams, log_probs: Tensor, number: int) -> Continuations:
    """The most probable continuations: beam search."""
    # The best `number` of all are among the best `number` of each beam.
    best, words = log_probs.topk(min(number, log_probs.shape[1]), dim=1)  # (A * R, T)
    total = (beams.log_probs.reshape(-1, 1) + best).view(len(beams.images), -1)  # (A, R * T)
    scores, order = total.topk(min(number, total.shape[1]), dim=1)  # (A, C)
    return scores, order // best.shape[1], words.view(total.shape).gather(1, order)


def constrained(beams: Beams, log_probs: Tensor, number: int, must: Tensor) -> Continuations:
    """Dynamic beam allocation (Post and Vilar 2018): the beam is shared by captions with 0, 1, … W of `must` (W,).

    Candidates are the continuations of each beam, and each beam with each word of `must` that it lacks. They fall into
    W + 1 banks by how many of the words they contain. The best of every bank come first, then the second best, and so
    on, so the banks share the beam equally and places that one cannot fill go to the others.

    Example, must = {dog}, candidates by score: "a man" (bank 0), "a boy" (0), "a dog" (1), "the dog" (1). Their places
    in their banks are 1, 2, 1, 2, so the order is "a man", "a dog", "a boy", "the dog".
    """
    shape = beams.log_probs.shape  # A, R
    best, words = (part.unflatten(0, shape) for part in log_probs.topk(min(number, log_probs.shape[1]), dim=1))
    forced = log_probs[:, must].unflatten(0, shape)  # (A, R, W)
    forced = forced.masked_fill((words.unsqueeze(-1) == must).any(2), -math.inf)  # is a candidate already
    words = torch.cat([words, must.expand(*shape, -1)], dim=2)  # (A, R, T + W)
    scores = beams.log_probs.unsqueeze(2) + torch.cat([best, forced], dim=2)  # (A, R, T + W)
    had = contains(beams.history, must)  # (A, R, W)
    new = (words.unsqueeze(3) == must) & ~had.unsqueeze(2)  # (A, R, T + W, W)
    bank = had.sum(2, keepdim=True) + new.sum(3)  # (A, R, T + W)

    scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)  # (A, R * (T + W))
    bank = bank.flatten(1).gather(1, order)
    in_bank = bank.unsqueeze(2) == torch.arange(len(must) + 1, device=must.device)  # (A, R * (T + W), W + 1)
    place = (in_bank.cumsum(1) * in_bank).sum(2)  # in its bank: 1, 2, …
    place = place.masked_fill(scores == -math.inf, place.shape[1] + 1)
    first = place.argsort(dim=1, stable=True)[:, :number]  # (A, C)
    order = order.gather(1, first)
    return scores.gather(1, first), order // words.shape[2], words.flatten(1).gather(1, order)


def diverse(
    beams: Beams, log_probs: Tensor, number: int, choose: Choose, groups: int, strength: float
) -> Continuations:
    """Diverse beam search (Vijayakumar et al. 2018) with Hamming diversity.

    Every image has `groups` consecutive rows, one per group. The groups choose in turn. A word costs `strength`
    nats for each time that an earlier group has taken it at this step. The costs are subtracted from the scores.
    """
    by_group = log_probs.unflatten(0, (-1, groups, beams.log_probs.shape[1]))  # (A / G, G, R, V)
    cost = torch.zeros_like(by_group[:, 0, 0])  # (A / G, V)
    chosen = []
    for g in range(groups):
        group = Beams(*(part[g::groups] for part in beams))
        scores, parents, words = choose(group, (by_group[:, g] - cost.unsqueeze(1)).flatten(0, 1), number)
        chosen.append((scores, parents, words))
        taken = slice(number // 2)
        cost = cost.scatter_add(1, words[:, taken], strength * (scores[:, taken] > -math.inf).to(cost.dtype))
    scores, parents, words = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*chosen, strict=True))
    return scores, parents, words


def sample(beams: Beams, log_probs: Tensor, number: int, uniforms: Tensor, config: SearchConfig) -> Continuations:
    """One word sampled from the distribution: temperature, top-k, top-p, min-p, each applied to the remaining words.

    `uniforms` (B, M + 1) are numbers in [0, 1), one for each image and step, so that a caption does not depend on the
    other images of the batch. Multiples of 2⁻²³ stay below 1 in float32.
    """
    p, names = log_probs.topk(min(config.top_k, log_probs.shape[1])) if config.top_k else (log_probs, None)
    p = p.exp() if config.temperature == 1 else (p / config.temperature).softmax(dim=1)  # (A, V or k)
    if config.top_p < 1:
        p.masked_fill_(p < (_nucleus(p.flip(1), config.top_p) if config.top_k else _least_kept(p, config.top_p)), 0)
    if config.min_p:
        p.masked_fill_(p < config.min_p * p.amax(dim=1, keepdim=True), 0)
    upto = p.cumsum_(dim=1)
    u = uniforms[beams.images, beams.history.shape[2]].unsqueeze(1)  # (A, 1)
    words = torch.searchsorted(upto, u * upto[:, -1:], right=True).clamp_(max=p.shape[1] - 1)  # (A, 1)
    words = words if names is None else names.gather(1, words)
    return beams.log_probs + log_probs.gather(1, words), torch.zeros_like(words), words


def _nucleus(ascending: Tensor, top_p: float) -> Tensor:
    """(A, 1) the least probability kept of ascending ones (A, C): those below it have at most 1 − top_p together."""
    upto = ascending.cumsum(dim=1)
    kept = torch.searchsorted(upto, (1 - top_p) * upto[:, -1:], right=True).clamp_(max=upto.shape[1] - 1)
    return ascending.gather(1, kept)


def _least_kept(p: Tensor, top_p: float) -> Tensor:
    """:func:`_nucleus` of the words (A, V) in any order.

    On a CPU the LARGEST probabilities of each row and the sum of the others are enough for nearly all rows. The rest,
    where the sums are too close to 1 − top_p for float32 or more words are kept, are sorted. Choosing these rows would
    need a synchronisation with a GPU, which sorts all.
    """
    if p.device.type != "cpu":
        return _nucleus(p.sort(dim=1).values, top_p)
    rows = p.numpy()  # numpy partitions and sorts ten times as fast as torch
    if p.shape[1] <= 2 * LARGEST:
        return _nucleus(torch.from_numpy(np.sort(rows)), top_p)
    few = np.array_split(rows, len(rows) // 16 + 1)  # whose copy stays in the processor's cache
    parts = [np.sort(np.partition(part, -LARGEST)[:, -LARGEST:]) for part in few]
    largest = torch.from_numpy(np.concatenate(parts))  # (A, LARGEST) ascending
    total = p.sum(dim=1, keepdim=True)
    upto = total - largest.sum(dim=1, keepdim=True) + largest.cumsum(dim=1)  # (A, LARGEST)
    bounds = (1 - top_p + torch.tensor([-3e-6, 3e-6])) * total  # (A, 2), either side of the exact one
    kept = torch.searchsorted(upto, bounds, right=True).clamp_(max=LARGEST - 1)
    found, other = largest.gather(1, kept).split(1, dim=1)  # (A, 1)
    if len(undecided := np.flatnonzero((kept[:, :1] == 0) | (found != other))):
        found[undecided] = _nucleus(torch.from_numpy(np.sort(rows[undecided])), top_p)
    return found


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
    constraints: Sequence[Constraint] = (),
    choose: Choose = topk,
    group_size: int = 1,
) -> Hypotheses:
    """The loop of every search, batched over images; with width 1 and :func:`topk` it is greedy search.

    An image is done with K finished captions, one of them more probable than every live beam, or when no live beam can
    still overtake its n best. Beams that are live at the maximal length rank after the finished captions, unless a
    constraint forbids END after them.

    Args:
        step: ``step(words (A · R,), state, context) -> log_probs (A · R, V), state``. The R rows of an image are
            consecutive; `context` has one row per image. The log-probabilities are changed in place.
        state: tensors of B rows before the first word; reordered like the beams.
        context: tensors of B rows, constant over the steps; only rows of finished images are dropped.
        start, end: ids before and after every caption.
        width, n_best: K, and n up to K.
        config: length_norm, length_penalty and max_length (M).
        constraints, choose: forbid words, and select the continuations.
        group_size: this many images in a row are finished together, as the groups of a diverse search.
    """
    first = (*context, *state)[0]  # either may have no tensors
    images, device, longest = len(first), first.device, config.max_length
    result = Hypotheses.empty(images, n_best, longest, end, device)
    finished = Hypotheses.empty(images, width, longest, end, device)
    active = torch.arange(images, device=device)  # (A,)
    live = torch.zeros((images, 1), device=device)  # (A, R) log-probabilities
    history = torch.full((images, 1, longest), end, device=device)  # (A, R, M)
    terms = torch.zeros((images, 1, longest + 1), device=device)  # (A, R, M + 1) log-probability of each word
    words = torch.full((images,), start, device=device)  # (A * R,)

    for length in range(longest + 1):  # of every live beam
        log_probs, state = step(words, state, context)  # (A * R, V)
        beams = Beams(active, live, history[:, :, :length])
        for constraint in constraints:
            constraint(log_probs, beams.history.flatten(0, 1))
        scores, parents, chosen = choose(beams, log_probs, 2 * width)  # (A, C)
        offsets = torch.arange(len(live), device=device).unsqueeze(1) * live.shape[1]  # (A, 1) first row of each image
        term = log_probs[parents + offsets, chosen]  # (A, C)
        ends = chosen == end  # (A, C)

        # Of the first K, those that end are finished.
        ending = scores[:, :width].masked_fill(~ends[:, :width], -math.inf)  # (A, K)
        parent = parents[:, :width]  # (A, K)
        ended = ending > -math.inf  # (A, K)
        new_terms = _take(terms, parent)  # (A, K, M + 1)
        new_terms[:, :, length] = term[:, :width]
        new = Hypotheses(
            words=_take(history, parent),
            lengths=torch.full_like(parent, length),
            log_probs=new_terms.sum(dim=2).masked_fill(~ended, -math.inf),
            scores=ending / _length_norm(length + 1, config),
            ended=ended,
            word_log_probs=new_terms,
        )
        finished = finished.concat(new).top(width)
        if length == longest:  # a beam that ends now is not live
            live.scatter_reduce_(1, parent, torch.where(ended, -math.inf, 0.0), "sum")
            break

        # The first K of the others stay live.
        others = ends.int().argsort(dim=1, stable=True)[:, :width]  # (A, K)
        live = scores.masked_fill(ends, -math.inf).gather(1, others)
        parents, chosen = parents.gather(1, others), chosen.gather(1, others)
        history, terms = _take(history, parents), _take(terms, parents)
        history[:, :, length], terms[:, :, length] = chosen, term.gather(1, others)
        rows = parents + offsets  # (A, K) of the state

        # Log-probabilities only fall, so the score of a live beam is at most its present one over the largest norm.
        best = live.amax(1)  # (A,)
        bound = best / _length_norm(longest + 1, config)
        enough = finished.ended[:, -1] & (finished.log_probs.amax(1) >= best)
        done = enough | (finished.scores[:, n_best - 1] >= bound)
        if group_size > 1:
            live = live.masked_fill(done.unsqueeze(1), -math.inf)
            done = done.unflatten(0, (-1, group_size)).all(1).repeat_interleave(group_size)
        remaining = (~done).nonzero()[:, 0]  # the only synchronisation with the device in a step
        if len(remaining) < len(done):
            for part, found in zip(result, finished, strict=True):
                part[active] = found[:, :n_best]  # images that remain are written again later
            if len(remaining) == 0:
                return result
            active, live, history, terms, chosen, rows = (
                part[remaining] for part in (active, live, history, terms, chosen, rows)
            )
            finished = Hypotheses(*(part[remaining] for part in finished))
            context = _select_rows(context, remaining)
        state = _select_rows(state, rows.flatten())
        words = chosen.flatten()

    may_end = torch.zeros_like(log_probs)
    for constraint in constraints:
        constraint(may_end, history.flatten(0, 1))
    live = live.masked_fill(may_end[:, end].view_as(live) == -math.inf, -math.inf)
    lengths, ended = torch.full_like(live, longest, dtype=torch.long), torch.zeros_like(live, dtype=torch.bool)
    cut = Hypotheses(history, lengths, terms.sum(dim=2), live / _length_norm(longest, config), ended, terms)
    for part, found in zip(result, finished.concat(cut).top(n_best), strict=True):
        part[active] = found
    return result


def search(
    step: Step, state: State, context: State, ids: Ids, config: SearchConfig, keys: Sequence[int] | None = None
) -> Hypotheses:
    """The n best captions of each image, as `config` describes them.

    step, state and context are as for :func:`beam`. `keys` are for sampling, an int ≥ 0 of each image, such as a
    checksum; the random numbers depend on it and the seed.
    """
    device, config = (*context, *state)[0].device, config.for_model(MAX_LENGTH)
    constraints = _constraints(ids, config, device)
    loop = partial(beam, step, start=ids.start, end=ids.end, config=config, constraints=constraints)
    if config.sample:
        assert keys is not None, "sampling needs a key for each image"
        uniforms = torch.stack([_uniforms(config, key, i) for key in keys for i in range(config.n_best)]).to(device)
        state, context = (_repeat(parts, config.n_best) for parts in (state, context))
        found = loop(state, context, width=1, n_best=1, choose=partial(sample, uniforms=uniforms, config=config))
        return found.merge_images(config.n_best).top(config.n_best)
    choose: Choose = topk
    if ids.must:
        choose = partial(constrained, must=torch.tensor(ids.must, device=device))
    groups, width = config.groups, config.beam // config.groups
    if groups == 1:
        return loop(state, context, width=width, n_best=config.n_best, choose=choose)
    state, context = (_repeat(parts, groups) for parts in (state, context))
    choose = partial(diverse, choose=choose, groups=groups, strength=config.diversity)
    found = loop(state, context, width=width, n_best=width, choose=choose, group_size=groups).merge_images(groups)
    scores = found.log_probs / _length_norm(found.lengths + found.ended, config)  # without the costs of diversity
    found = found._replace(scores=scores.masked_fill(found.scores == -math.inf, -math.inf))
    return found.distinct(groups, config.n_best).top(config.n_best)


def ensemble(members: Sequence[tuple[Step, State, State]]) -> tuple[Step, State, State]:
    """Several models (step, state and context of each) as one: the mean of their probabilities at every step."""

    def step(words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        after: State = ()
        each = []
        states, contexts = iter(state), iter(context)
        for member, own_state, own_context in members:
            own = tuple(islice(states, len(own_state))), tuple(islice(contexts, len(own_context)))
            log_probs, new = member(words, *own)
            each.append(log_probs)
            after += new
        return torch.stack(each).logsumexp(dim=0) - math.log(len(each)), after

    return step, sum((state for _, state, _ in members), ()), sum((context for *_, context in members), ())


def _constraints(ids: Ids, config: SearchConfig, device: torch.device) -> list[Constraint]:
    banned, bad_endings, must = (
        torch.tensor(words, dtype=torch.long, device=device) for words in (ids.banned, ids.bad_endings, ids.must)
    )
    found: list[Constraint] = [partial(forbid, words=banned)]
    if config.min_length:
        found.append(partial(min_length, length=config.min_length, end=ids.end))
    if config.no_repeat_word:
        found.append(no_repeat_word)
    if config.no_repeat_ngram:
        found.append(partial(no_repeat_ngram, n=config.no_repeat_ngram))
    if config.no_bad_ending:
        found.append(partial(no_bad_ending, words=bad_endings, end=ids.end, max_length=config.max_length))
    if ids.must:
        found.append(partial(require, words=must, end=ids.end))
    return [partial(begin_with, prefix=ids.prefix, constraints=found)] if ids.prefix else found


def _uniforms(config: SearchConfig, key: int, caption: int) -> Tensor:
    """(M + 1,) multiples of 2⁻²³ in [0, 1), which depend on the seed, the image's key and the caption's number."""
    random = np.random.default_rng((config.seed, key, caption))
    return torch.from_numpy(random.integers(2**23, size=config.max_length + 1)).float() / 2**23


def _length_norm(length: Any, config: SearchConfig) -> Any:
    """The divisor of the log-probability of |Y| words, END included; `length` is |Y|, an int or a tensor.

    gnmt: ``((5 + |Y|) / 6) ** length_penalty`` (Wu et al. 2016, equation 14); average: ``|Y|``.
    """
    return length if config.length_norm == "average" else ((5 + length) / 6) ** config.length_penalty


def _take(part: Tensor, order: Tensor) -> Tensor:
    """``out[a, i] = part[a, order[a, i]]`` for part (A, R) or (A, R, M), order (A, n)."""
    if part.dim() == 3:
        order = order.unsqueeze(2).expand(-1, -1, part.shape[2])
    return part.gather(1, order)


def _select_rows(parts: State, rows: Tensor) -> State:
    return tuple(part.index_select(0, rows) for part in parts)


def _repeat(parts: State, times: int) -> State:
    """Every row `times` times in a row."""
    return tuple(part.repeat_interleave(times, dim=0) for part in parts)
