"""Searches over step functions so small that every caption can be enumerated."""

import itertools
import math
import random
from dataclasses import asdict
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from waits import Waits

from captioner.config import ModelConfig, SearchConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, UNK
from captioner.decoding import constraints
from captioner.decoding import search as search_module
from captioner.decoding.search import Beams, Hypotheses, Ids, constrained, ensemble, sample
from captioner.decoding.search import search as search_for
from captioner.deploy.onnx_runner import beam as numpy_beam
from captioner.models.decoder import Decoder

BANNED = (PAD, START, UNK)
IDS = Ids(START, END, BANNED)
NEVER = float("-inf")


def of_rows(context: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The context of each row, where `context` has a row for each image."""
    return context.repeat_interleave(len(words) // len(context), dim=0)


def random_step(seed: int, vocabulary: int = 7, size: int = 5, shift: dict[int, float] | None = None):
    """A recurrent step with random weights whose answer depends on state and context; `shift` is added to logits."""
    generator = torch.Generator().manual_seed(seed)
    embedding, recurrent, output = (
        torch.randn(*shape, generator=generator) for shape in ((vocabulary, size), (size, size), (size, vocabulary))
    )

    def step(words, state, context):
        h = torch.tanh(embedding[words] + state[0] @ recurrent + of_rows(context[0], words))
        logits = 2 * h @ output
        for word, by in (shift or {}).items():
            logits[:, word] += by
        return torch.log_softmax(logits, dim=-1), (h,)

    return step


def images(seed: int, count: int, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def search(step, context: torch.Tensor, ids: Ids = IDS, keys=None, **config) -> Hypotheses:
    config = SearchConfig(**{"min_length": 0, **config})  # no word at all is a caption, too
    if config.sample and keys is None:
        keys = keys_of(context)
    found = search_for(step, (torch.zeros_like(context),), (context,), ids, config, keys)
    shape = (len(context), config.n_best)
    assert found.words.shape == (*shape, config.max_length)
    assert found.word_log_probs.shape == (*shape, config.max_length + 1)
    assert all(part.shape == shape for part in (found.lengths, found.log_probs, found.scores, found.ended))
    return found


def keys_of(context: torch.Tensor) -> list[int]:
    """A number of each image."""
    return [int(1e6 * row.abs().sum()) for row in context]


def captions(found: Hypotheses, i: int) -> list[tuple[int, ...]]:
    """The captions of image i."""
    return [
        tuple(words[:length])
        for words, length, score in zip(
            found.words[i].tolist(), found.lengths[i].tolist(), found.scores[i].tolist(), strict=True
        )
        if score > NEVER
    ]


def log_prob_of(step, v: torch.Tensor, words) -> float:
    """Sum of the steps' log-probabilities of `words` (5 numbers of the context v, one image)."""
    state, last, total = (torch.zeros(1, len(v)),), START, 0.0
    for word in words:
        log_probs, state = step(torch.tensor([last]), state, (v[None],))
        total, last = total + log_probs[0, word].item(), word
    return total


def penalty(words: int, alpha: float) -> float:
    """Wu et al. 2016, equation 14."""
    return (5 + words) ** alpha / (5 + 1) ** alpha


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("longest", [1, 2, 3])
def test_a_beam_wide_enough_finds_the_best_of_all(seed, alpha, longest):
    step, context = random_step(seed), images(seed, 4)
    every_row = 4 * 3**longest  # END or one of three words after each of the longest captions
    found = search(step, context, beam=every_row, n_best=5, length_penalty=alpha, max_length=longest)
    for i, v in enumerate(context):
        every = []
        for length in range(longest + 1):
            for words in itertools.product((4, 5, 6), repeat=length):
                log_prob = log_prob_of(step, v, (*words, END))
                every.append((log_prob / penalty(length + 1, alpha), log_prob, words))
        every.sort(reverse=True)
        ended = min(5, len(every))
        assert captions(found, i)[:ended] == [words for _, _, words in every[:ended]]
        assert found.scores[i, :ended].tolist() == pytest.approx([score for score, _, _ in every[:ended]], abs=1e-4)
        assert found.log_probs[i, :ended].tolist() == pytest.approx([value for _, value, _ in every[:ended]], abs=1e-4)
        assert found.ended[i].tolist() == [True] * ended + [False] * (5 - ended)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("longest", [1, 2, 6])
def test_width_one_is_greedy(seed, alpha, longest):
    step, context = random_step(seed, shift={END: -1.0}), images(seed, 5)
    found = search(step, context, beam=1, length_penalty=alpha, max_length=longest)
    for i, v in enumerate(context):
        state, last, words, total, ended = (torch.zeros(1, 5),), START, [], 0.0, False
        while True:
            log_probs, state = step(torch.tensor([last]), state, (v[None],))
            log_probs[:, list(BANNED)] = NEVER
            last = int(log_probs.argmax())
            if last == END:
                total, ended = total + log_probs.max().item(), True
                break
            if len(words) == longest:
                break
            words.append(last)
            total += log_probs.max().item()
        assert captions(found, i) == [tuple(words)]
        assert found.ended[i, 0] == ended
        assert found.log_probs[i, 0].item() == pytest.approx(total, abs=1e-4)
        assert found.scores[i, 0].item() == pytest.approx(total / penalty(len(words) + ended, alpha), abs=1e-4)


CONFIGS = [
    {"beam": 1, "max_length": 4},
    {"beam": 2, "max_length": 8},
    {"beam": 3, "n_best": 3, "max_length": 5},
    {"beam": 5, "n_best": 2, "max_length": 7, "length_penalty": 1.0},
    {"beam": 40, "n_best": 40, "max_length": 2},
]
# Of the options that ids go with, every one alone and some together.
ALL_IDS = Ids(START, END, BANNED, bad_endings=(4,), prefix=(5, 5), must=(6,))
MORE_CONFIGS = [
    *((config, IDS) for config in CONFIGS),
    ({"beam": 4, "max_length": 6, "length_norm": "average"}, IDS),
    ({"beam": 3, "max_length": 8, "no_repeat_ngram": 2, "min_length": 3}, IDS),
    ({"beam": 3, "max_length": 6, "no_repeat_word": True, "no_bad_ending": True}, IDS._replace(bad_endings=(4, 5))),
    ({"beam": 4, "n_best": 2, "max_length": 6}, IDS._replace(must=(4, 6))),
    ({"beam": 3, "max_length": 6}, IDS._replace(prefix=(4, 5))),
    ({"beam": 6, "n_best": 4, "max_length": 6, "groups": 3}, IDS),
    ({"beam": 4, "n_best": 4, "max_length": 6, "groups": 4, "diversity": 2.0}, IDS),
    ({"beam": 6, "max_length": 7, "groups": 2, "no_repeat_ngram": 1, "no_bad_ending": True}, ALL_IDS),
    ({"sample": True, "max_length": 7}, IDS),
    ({"sample": True, "n_best": 5, "max_length": 7, "temperature": 0.7, "top_k": 3, "seed": 8}, IDS),
    ({"sample": True, "n_best": 2, "max_length": 7, "top_p": 0.7, "min_p": 0.1, "no_repeat_word": True}, IDS),
]


@pytest.mark.parametrize(("config", "ids"), MORE_CONFIGS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_batched_equals_one_by_one_in_any_order(config, ids, seed):
    step, context = random_step(seed, shift={END: -0.5}), images(seed, 7)
    found = search(step, context, ids, **config)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    permuted = search(step, context[order], ids, **config)
    for i in range(7):
        single = search(step, context[i : i + 1], ids, **config)
        place = order.tolist().index(i)
        assert captions(found, i) == captions(single, 0) == captions(permuted, place)
        assert torch.allclose(found.scores[i], single.scores[0], atol=1e-5)
        assert torch.allclose(found.scores[i], permuted.scores[place], atol=1e-5)


def scripted_step(words, state, context):
    """Gives the image's own caption, which is its context; the state counts the words."""
    place = state[0].long()  # (N, 1)
    log_probs = torch.full((len(words), 40), -20.0).scatter(1, of_rows(context[0], words).gather(1, place), -0.01)
    return log_probs, (state[0] + 1,)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[0, 3], [3, 0], [0, 3, 0, 2], [4, 0, 4, 0], [0, 1, 2, 3, 4, 5], None])
@pytest.mark.parametrize("seed", range(3))
def test_every_image_keeps_its_own_context(width, lengths, seed):
    """Images that end early leave rows of state and context behind; with K = 2 and half of the images ended after
    the first step, the number of rows is what it was before."""
    choose = random.Random(seed)
    lengths = lengths or [choose.randrange(6) for _ in range(choose.randrange(2, 12))]
    scripts = [[choose.randrange(4, 40) for _ in range(length)] for length in lengths]
    context = torch.tensor([script + [END] * (8 - len(script)) for script in scripts])
    state, config = (torch.zeros(len(scripts), 1),), SearchConfig(beam=width, max_length=6, min_length=0)
    found = search_for(scripted_step, state, (context,), IDS, config)
    assert [list(captions(found, i)[0]) for i in range(len(scripts))] == scripts
    assert found.ended.all()


@pytest.mark.parametrize("beam", [1, 2, 5, 8])
def test_a_caption_known_by_heart_is_found_however_many_shorter_ones_end(beam):
    """Each word of the caption has a probability of 0.9, and each shorter caption ends with one of 0.1."""
    caption = [4 + i % 30 for i in range(25)]
    context = torch.tensor([[*caption, END, END]])

    def step(words, state, context):
        right, state = scripted_step(words, state, context)
        log_probs = torch.where(right > -1, math.log(0.9), right)
        log_probs[:, END] = log_probs[:, END].clamp_min(math.log(0.1))
        return log_probs, state

    config = SearchConfig(beam=beam, max_length=26)
    found = search_for(step, (torch.zeros(1, 1),), (context,), IDS, config)
    assert captions(found, 0)[0] == tuple(caption)
    words = numpy_beam(partial(_numpy_step, caption), (np.zeros((1, 1)),), {**asdict(config), "beam": beam})[0].words
    assert words == caption


def _numpy_step(caption, words, state):
    """The step of the test above for one image."""
    place = int(state[0][0, 0])
    log_probs = np.full((len(words), 40), -20.0, np.float32)
    log_probs[:, END] = math.log(0.1)
    log_probs[:, [*caption, END][place]] = math.log(0.9)
    return log_probs, (state[0] + 1,)


@pytest.mark.parametrize("config", CONFIGS)
def test_special_words_are_never_produced(config):
    step = random_step(0, shift={PAD: 50.0, START: 60.0, UNK: 70.0})
    found = search(step, images(0, 6), **config)
    for i in range(6):
        assert captions(found, i)
        assert all(word > UNK for words in captions(found, i) for word in words)


@pytest.mark.parametrize("unlikely", [NEVER, -1e4, -30.0])
@pytest.mark.parametrize(("width", "n_best", "longest"), [(1, 1, 1), (1, 1, 5), (3, 2, 5), (5, 5, 1), (5, 5, 8)])
def test_without_an_end_the_live_beams_are_the_answer(unlikely, width, n_best, longest):
    step, context = random_step(0, vocabulary=30, shift={END: unlikely}), images(0, 3)
    found = search(step, context, beam=width, n_best=n_best, max_length=longest)
    assert not found.ended.any()
    assert (found.lengths == longest).all()
    assert (found.words > UNK).all()
    for i, v in enumerate(context):
        assert len(set(captions(found, i))) == n_best
        for words, log_prob in zip(captions(found, i), found.log_probs[i].tolist(), strict=True):
            assert log_prob == pytest.approx(log_prob_of(step, v, words), abs=1e-3)


def test_finished_captions_come_before_cut_ones():
    """The one beam that ends scores less than those that are cut off, and is still the better caption."""
    log_probs = torch.full((8,), NEVER)
    log_probs[[END, 4, 5]] = torch.tensor([0.2, 0.5, 0.3]).log()

    def step(words, state, context):
        return log_probs.expand(len(words), -1).clone(), state

    found = search(step, torch.zeros(1, 5), beam=3, n_best=3, max_length=1)
    assert captions(found, 0) == [(), (4,), (5,)]
    assert found.ended.tolist() == [[True, False, False]]
    assert found.log_probs[0].exp().tolist() == pytest.approx([0.2, 0.5, 0.3])
    found = search(step, torch.zeros(1, 5), beam=2, n_best=2, max_length=1)
    assert captions(found, 0) == [(4,), (5,)]
    assert not found.ended.any()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(5))
def test_captions_are_distinct_and_sorted_and_their_scores_add_up(config, seed):
    step, context = random_step(seed), images(seed, 6)
    found, alpha = search(step, context, **config), SearchConfig(**config).length_penalty
    for i, v in enumerate(context):
        words = captions(found, i)
        assert len(set(words)) == len(words) >= 1
        for ended in (True, False):
            scores = found.scores[i][found.ended[i] == ended]
            assert torch.equal(scores, scores.sort(descending=True).values)
        assert found.ended[i].int().diff().max() <= 0 if len(found.ended[i]) > 1 else True
        for k, caption in enumerate(words):
            ended = bool(found.ended[i, k])
            log_prob = log_prob_of(step, v, (*caption, END) if ended else caption)
            assert found.log_probs[i, k].item() == pytest.approx(log_prob, abs=1e-4)
            assert found.scores[i, k].item() == pytest.approx(log_prob / penalty(len(caption) + ended, alpha), abs=1e-4)


def test_fewer_captions_than_asked_for_leave_empty_places():
    found = search(random_step(0, vocabulary=5), images(0, 3), beam=6, n_best=6, max_length=2)
    for i in range(3):  # (), (4,), (4, 4), and (4, 4) cut
        assert 3 <= len(captions(found, i)) <= 4
    assert (found.scores[:, 4:] == NEVER).all()


def test_a_length_penalty_favours_longer_captions():
    step, context = random_step(3), images(3, 20)
    means = [
        search(step, context, beam=20, length_penalty=alpha, max_length=5).lengths.float().mean().item()
        for alpha in (0.0, 1.0, 3.0)
    ]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_scores_are_those_of_the_decoder_with_teacher_forcing(cell, layers):
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(cell=cell, layers=layers, hidden_size=8, embedding_size=8), 12, 6).eval()
    decoder.output.weight *= 20  # captions that differ from image to image
    decoder.output.bias[END] -= 1
    v = torch.randn(6, 6)
    config = SearchConfig(beam=4, n_best=4, length_penalty=0.5, max_length=6)
    state, context = decoder.start(v)
    found = search_for(decoder.step, state, context, IDS, config)
    best = set()
    for i in range(6):
        for k, caption in enumerate(captions(found, i)):
            words = torch.tensor([[START, *caption, *([END] if found.ended[i, k] else [])]])
            targets = words[:, 1:]
            layout = Layout.of(np.ones(targets.shape, dtype=bool))
            logits = decoder(v[i : i + 1], words[:, :-1], torch.tensor([0]), layout)
            log_prob = logits.log_softmax(-1).gather(1, targets.T).sum().item()
            assert found.log_probs[i, k].item() == pytest.approx(log_prob, abs=1e-4)
        best.add(captions(found, i)[0])
    assert len(best) > 1


# ---- constraints


def allowed(ids: Ids, config: SearchConfig, history: tuple[int, ...], word: int) -> bool:
    """Whether `word` may follow `history`: the constraints, written a second time."""
    place, whole = len(history), (*history, word)
    if place < len(ids.prefix):
        return word == ids.prefix[place]
    if word in ids.banned:
        return False
    if word == END:
        ends_badly = config.no_bad_ending and place and history[-1] in ids.bad_endings
        return place >= config.min_length and set(ids.must) <= set(history) and not ends_badly
    if config.no_bad_ending and place == config.max_length - 1 and word in ids.bad_endings:
        return False
    if config.no_repeat_word and history[-1:] == (word,):
        return False
    n = config.no_repeat_ngram
    return not n or place < n or whole[-n:] not in [history[i : i + n] for i in range(place - n + 1)]


def everything(step, v: torch.Tensor, ids: Ids, config: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """(log-probability, caption) of every ended caption that satisfies the constraints, the best score first."""
    found = []

    def follow(words: tuple[int, ...], total: float, log_probs, state) -> None:
        if allowed(ids, config, words, END):
            found.append((total + log_probs[END].item(), words))
        for word in (4, 5, 6) if len(words) < config.max_length else ():
            if allowed(ids, config, words, word):
                after, new = step(torch.tensor([word]), state, (v[None],))
                follow((*words, word), total + log_probs[word].item(), after[0], new)

    log_probs, state = step(torch.tensor([START]), (torch.zeros(1, len(v)),), (v[None],))
    follow((), 0.0, log_probs[0], state)
    return sorted(found, key=lambda one: score_of(one[0], len(one[1]) + 1, config), reverse=True)


def score_of(log_prob: float, terms: int, config: SearchConfig) -> float:
    return log_prob / (terms if config.length_norm == "average" else penalty(terms, config.length_penalty))


three_words = st.lists(st.sampled_from([4, 5, 6]), max_size=2)


@given(
    seed=st.integers(0, 99),
    options=st.fixed_dictionaries(
        {"max_length": st.integers(2, 4)},
        optional={
            "min_length": st.integers(0, 2),
            "no_repeat_ngram": st.integers(0, 3),
            "no_repeat_word": st.booleans(),
            "no_bad_ending": st.booleans(),
            "length_norm": st.sampled_from(["gnmt", "average"]),
            "length_penalty": st.sampled_from([0.0, 0.7, 1.5]),
        },
    ),
    prefix=three_words,
    must=three_words.map(lambda words: tuple(dict.fromkeys(words))),
    endings=three_words,
)
def test_a_wide_beam_finds_the_best_of_all_under_any_constraints(seed, options, prefix, must, endings):
    ids = Ids(START, END, BANNED, tuple(endings), tuple(prefix), must)
    options = {"min_length": 0, **options}
    config = SearchConfig(beam=400, n_best=4, **options)
    step, context = random_step(seed), images(seed, 2)
    found = search(step, context, ids, beam=400, n_best=4, **options)
    for i, v in enumerate(context):
        every = everything(step, v, ids, config)
        kept = int(found.ended[i].sum())
        assert kept == min(4, len(every))
        assert captions(found, i)[:kept] == [words for _, words in every[:kept]]
        expected = [score_of(log_prob, len(words) + 1, config) for log_prob, words in every[:kept]]
        assert found.scores[i, :kept].tolist() == pytest.approx(expected, abs=1e-4)
        for words in captions(found, i)[kept:]:  # cut off at the limit
            assert len(words) == config.max_length
            assert all(allowed(ids, config, words[:t], word) for t, word in enumerate(words))
            assert allowed(ids, config, words, END)


@given(
    seed=st.integers(0, 999),
    beam=st.integers(3, 6),
    ngram=st.integers(0, 2),
    twice=st.booleans(),
    shortest=st.integers(0, 5),
    must=three_words.map(lambda words: tuple(dict.fromkeys(words))),
    groups=st.sampled_from([1, 2]),
)
def test_a_narrow_beam_satisfies_the_constraints(seed, beam, ngram, twice, shortest, must, groups):
    ids = IDS._replace(must=must, bad_endings=(4,))
    options = {"no_repeat_ngram": ngram and 3, "no_repeat_word": twice, "min_length": shortest, "no_bad_ending": True}
    options |= {"max_length": 7, "groups": groups, "beam": beam * groups}
    step, context = random_step(seed, shift={END: 1.0}), images(seed, 4)
    found = search(step, context, ids, **options)
    for i in range(4):
        (words,) = captions(found, i)  # there is one
        assert all(allowed(ids, SearchConfig(**options), words[:t], word) for t, word in enumerate((*words, END)))


def test_log_probabilities_stay_those_of_the_model():
    step, context = random_step(2), images(2, 3)
    for config, ids in MORE_CONFIGS:
        found = search(step, context, ids, **config)
        for i, v in enumerate(context):
            for k, words in enumerate(captions(found, i)):
                whole = (*words, END) if found.ended[i, k] else words
                terms = [
                    log_prob_of(step, v, whole[: t + 1]) - log_prob_of(step, v, whole[:t]) for t in range(len(whole))
                ]
                assert found.word_log_probs[i, k, : len(whole)].tolist() == pytest.approx(terms, abs=1e-4)
                assert (found.word_log_probs[i, k, len(whole) :] == 0).all()
                assert found.log_probs[i, k].item() == pytest.approx(sum(terms), abs=1e-4)
                expected = score_of(sum(terms), len(whole), SearchConfig(**config))
                assert found.scores[i, k].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 3},
        {"beam": 4, "groups": 2},
        {"sample": True, "temperature": 0.5, "top_p": 0.9},
        {"sample": True, "top_k": 3, "min_p": 0.5},
    ],
)
def test_constraints_that_no_caption_satisfies_leave_empty_places(options):
    found = search(random_step(0), images(0, 3), min_length=4, no_repeat_ngram=1, max_length=5, **options)
    assert [captions(found, i) for i in range(3)] == [[], [], []]  # there are only three words


# ---- words that must appear


@pytest.mark.parametrize("seed", range(20))
def test_unlikely_words_appear_if_the_beam_is_wider_than_their_number(seed):
    step, context = random_step(seed, vocabulary=30, shift={10: -8.0, 20: -8.0, END: 2.0}), images(seed, 5)
    found = search(step, context, IDS._replace(must=(10, 20)), beam=3, max_length=8)
    without = search(step, context, beam=3, max_length=8)
    for i in range(5):
        assert {10, 20} <= set(captions(found, i)[0])
        assert not {10, 20} <= set(captions(without, i)[0])


def test_what_is_impossible_takes_no_place():
    beams = Beams(torch.arange(1), torch.zeros(1, 1), torch.zeros(1, 1, 0, dtype=torch.long))
    log_probs = torch.arange(8.0).log_softmax(0).unsqueeze(0)
    log_probs[0, [5, 6]] = NEVER  # none of the words that must appear is possible now
    scores, _, words = constrained(beams, log_probs, 4, torch.tensor([5, 6]))
    assert words.tolist() == [[7, 4, 3, 2]]
    assert scores.isfinite().all()


# ---- diverse beam search


def diverse_by_hand(step, v, groups: int, strength: float, longest: int) -> list[tuple[tuple[int, ...], bool]]:
    """Groups of width 1: each takes the best word after what the groups before it cost; (caption, ended) of each."""
    words, states, done = [()] * groups, [(torch.zeros(1, len(v)),)] * groups, [False] * groups
    for length in range(longest + 1):
        cost = torch.zeros(7)
        for g in range(groups):
            if done[g]:
                continue
            log_probs, states[g] = step(torch.tensor([words[g][-1] if length else START]), states[g], (v[None],))
            log_probs[:, list(BANNED)] = NEVER
            word = int((log_probs[0] - cost).argmax())
            cost[word] += strength
            if word == END:
                done[g] = True
            elif length < longest:
                words[g] = (*words[g], word)
    return list(zip(words, done, strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_diverse_groups_of_width_one_are_those_worked_by_hand(seed, strength):
    step, context = random_step(seed), images(seed, 4)
    found = search(step, context, beam=4, n_best=4, groups=4, diversity=strength, max_length=5)
    for i, v in enumerate(context):
        here = zip(captions(found, i), found.ended[i].tolist(), strict=False)
        assert sorted(here) == sorted(set(diverse_by_hand(step, v, 4, strength, 5)))


@pytest.mark.parametrize("seed", range(4))
def test_diverse_groups_without_a_cost_are_all_the_same_beam(seed):
    step, context = random_step(seed), images(seed, 4)
    found = search(step, context, beam=6, n_best=4, groups=2, diversity=0.0, max_length=5)
    alone = search(step, context, beam=3, n_best=3, max_length=5)
    assert [captions(found, i) for i in range(4)] == [captions(alone, i) for i in range(4)]


def test_every_group_has_its_best_caption_among_the_n_best():
    step, context = random_step(0, vocabulary=40), images(0, 10)
    plain = search(step, context, beam=9, n_best=3, max_length=4)
    each = search(step, context, beam=9, n_best=3, groups=3, diversity=3.0, max_length=4)
    every = search(step, context, beam=9, n_best=9, groups=3, diversity=3.0, max_length=4)
    for i in range(10):
        assert len(set(captions(each, i))) == 3
        assert len(set(captions(every, i))) == len(captions(every, i)) > 3
        assert set(captions(each, i)) <= set(captions(every, i))

    def words(found: Hypotheses) -> int:
        return sum(len({word for words in captions(found, i) for word in words}) for i in range(10))

    assert words(each) > 1.2 * words(plain)
    best = search(step, context, beam=9, n_best=1, groups=3, diversity=3.0, max_length=4)
    assert [captions(best, i)[0] for i in range(10)] == [captions(each, i)[0] for i in range(10)]


def test_diversity_makes_captions_differ():
    step, context = random_step(1, vocabulary=40), images(1, 10)
    kinds = []
    for strength in (0.0, 1.0, 10.0):
        found = search(step, context, beam=4, n_best=4, groups=4, diversity=strength, max_length=4)
        kinds.append(sum(len({words[:1] for words in captions(found, i)}) for i in range(10)))
    assert kinds[0] == 10
    assert kinds[0] < kinds[1] <= kinds[2]
    assert kinds[2] == 40


# ---- sampling


def left_of(p: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The distribution that is drawn from, filter by filter."""
    p = p ** (1 / temperature)
    p = p / p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p < 1:
        enough = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
        p[order[enough:]] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("draws", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8, "min_p": 0.2},
    ],
)
def test_words_are_drawn_as_often_as_they_should_be(options, draws):
    p = np.random.default_rng(0).dirichlet([0.7] * 8)
    log_probs = torch.full((12,), NEVER)
    log_probs[4:] = torch.tensor(p).log()

    def step(words, state, context):
        return log_probs.expand(len(words), -1).clone(), state

    found = search(step, torch.zeros(draws, 1), keys=range(draws), sample=True, max_length=1, **options)
    seen = np.bincount(found.words[:, 0, 0].numpy(), minlength=12)[4:] / draws
    expected = left_of(p, **options)
    assert (seen[expected == 0] == 0).all()
    assert np.abs(seen - expected).max() < 5 * 0.5 / draws**0.5


def test_the_same_image_and_seed_give_the_same_caption():
    step, context = random_step(0, vocabulary=50), images(0, 6)
    options = {"sample": True, "max_length": 8, "seed": 4}
    five = search(step, context, n_best=5, **options)
    twice = search(step, context.repeat(2, 1), n_best=5, **options)
    one = search(step, context, n_best=1, **options)
    other = search(step, context, n_best=5, **(options | {"seed": 5}))
    for i in range(6):
        assert captions(five, i) == captions(twice, i) == captions(twice, i + 6)
        assert captions(one, i)[0] in captions(five, i)
        assert len(set(captions(five, i))) > 1
    assert [captions(five, i) for i in range(6)] != [captions(other, i) for i in range(6)]


def test_sampling_from_the_likeliest_word_alone_is_greedy():
    step, context = random_step(0, vocabulary=50), images(0, 6)
    greedy = search(step, context, beam=1, max_length=8)
    for option in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"temperature": 1e-3}):
        found = search(step, context, sample=True, max_length=8, **option)
        assert [captions(found, i) for i in range(6)] == [captions(greedy, i) for i in range(6)]


def rows_of_probabilities(seed: int, width: int, kind: str) -> torch.Tensor:
    """(6, width) log-probabilities, some of them −inf."""
    random = np.random.default_rng(seed)
    logits = {
        "normal": lambda: random.normal(0, 3, (6, width)),
        "peaked": lambda: random.normal(0, 12, (6, width)),
        "flat": lambda: np.zeros((6, width)),
        "ties": lambda: np.log(random.integers(1, 4, (6, width))),
        "halves": lambda: -np.log(2) * np.broadcast_to(np.arange(width) % 20, (6, width)),
    }[kind]()
    log_probs = torch.tensor(logits).float().log_softmax(dim=1)
    return log_probs.masked_fill_(torch.tensor(random.random((6, width)) < random.choice([0, 0.2, 0.98])), NEVER)


@given(
    st.integers(0, 10**6),
    st.integers(1, 60) | st.just(3000),
    st.sampled_from(["normal", "peaked", "flat", "ties", "halves"]),
    st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999, 1 - 1e-7]) | st.floats(0.01, 0.9999),
    st.sampled_from([{}, {"temperature": 0.6}, {"temperature": 3.0}, {"min_p": 0.2}]),
)
def test_top_p_by_partial_selection_is_that_of_the_full_sort(seed, width, kind, top_p, more):
    log_probs = rows_of_probabilities(seed, width, kind)
    uniforms = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed))
    beams = Beams(torch.arange(6), torch.zeros(6, 1), torch.zeros(6, 1, 0, dtype=torch.long))
    p = log_probs.exp()
    words = []
    for largest in (4, width):  # with `width` all are sorted
        with patch.object(search_module, "LARGEST", largest):
            least = search_module._least_kept(p, top_p)
            assert torch.equal(least, search_module._nucleus(p.sort(dim=1).values, top_p))
            config = SearchConfig(sample=True, top_p=top_p, **more)
            words.append(sample(beams, log_probs.clone(), 2, uniforms, config)[2])
    assert torch.equal(*words)


def test_top_p_sorts_all_words_only_of_flat_rows():
    log_probs = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).mul(6).log_softmax(dim=1)
    log_probs[1] = -math.log(500)
    shapes, sort = [], np.sort
    with (
        patch.object(search_module, "LARGEST", 100),
        patch.object(np, "sort", lambda rows: (shapes.append(rows.shape), sort(rows))[1]),
    ):
        search_module._least_kept(log_probs.exp(), 0.9)
    assert shapes == [(3, 100), (1, 500)]


def test_the_number_drawn_stays_below_one():
    """The last word is the last with a probability, even for the largest number that can be drawn."""
    p = torch.rand(4096, 50, generator=torch.Generator().manual_seed(0))
    p[:, -3:] = 0
    largest = torch.full((4096, 1), (2**23 - 1) / 2**23)
    beams = Beams(torch.arange(4096), torch.zeros(4096, 1), torch.zeros(4096, 1, 0, dtype=torch.long))
    log_probs = (p / p.sum(1, keepdim=True)).log()
    scores, _, words = sample(beams, log_probs, 2, largest, SearchConfig(sample=True))
    assert (words == 46).all()
    assert scores.isfinite().all()


# ---- the beam of exported models


@given(
    seed=st.integers(0, 999),
    beam=st.integers(1, 12),
    n_best=st.integers(1, 12),
    max_length=st.integers(1, 8),
    min_length=st.integers(0, 4),
    length_norm=st.sampled_from(["gnmt", "average"]),
    length_penalty=st.sampled_from([0.0, 0.7, 1.5]),
    end=st.sampled_from([-2.0, 0.0, 1.0]),
)
def test_the_numpy_beam_of_exported_models_gives_the_same_captions(seed, end, **options):
    options |= {"n_best": min(options["n_best"], options["beam"])}
    options |= {"min_length": min(options["min_length"], options["max_length"])}
    step, context = random_step(seed, vocabulary=12, shift={END: end}), images(seed, 3)
    found = search(step, context, **options)
    for i, v in enumerate(context):

        def numpy_step(words, state, v=v):
            log_probs, state = step(torch.from_numpy(words), tuple(map(torch.from_numpy, state)), (v[None],))
            return log_probs.numpy(), tuple(part.numpy() for part in state)

        expected = numpy_beam(numpy_step, (np.zeros((1, len(v)), np.float32),), options)
        assert captions(found, i) == [tuple(one.words) for one in expected]
        assert [one.ended for one in expected] == found.ended[i, : len(expected)].tolist()
        assert [one.score for one in expected] == pytest.approx(found.scores[i, : len(expected)].tolist(), abs=1e-4)


# ---- ensembles


@pytest.mark.parametrize(("config", "ids"), MORE_CONFIGS)
def test_an_ensemble_of_one_model_is_the_model(config, ids):
    step, context = random_step(3), images(3, 5)
    member = (step, (torch.zeros_like(context),), (context,))
    options = SearchConfig(**{"min_length": 0, **config})
    twice = search_for(*ensemble([member, member]), ids, options, keys_of(context))
    alone = search(step, context, ids, **config)
    assert [captions(twice, i) for i in range(5)] == [captions(alone, i) for i in range(5)]
    assert torch.allclose(twice.log_probs, alone.log_probs, atol=1e-4)


def test_an_ensemble_takes_the_mean_of_the_probabilities():
    context = images(0, 3)
    steps = [random_step(seed, size=5) for seed in (1, 2, 3)]

    def mean(words, state, context):
        each = [step(words, (state[i],), context) for i, step in enumerate(steps)]
        return torch.stack([log_probs.exp() for log_probs, _ in each]).mean(0).log(), tuple(new[0] for _, new in each)

    members = [(step, (torch.zeros_like(context),), (context,)) for step in steps]
    config = SearchConfig(beam=3, n_best=3, max_length=5)
    together = search_for(*ensemble(members), IDS, config)
    by_hand = search_for(mean, (torch.zeros_like(context),) * 3, (context,), IDS, config)
    assert [captions(together, i) for i in range(3)] == [captions(by_hand, i) for i in range(3)]
    assert torch.allclose(together.log_probs, by_hand.log_probs, atol=1e-5)


# ---- synchronisations with the device


@pytest.mark.parametrize(("config", "ids"), MORE_CONFIGS)
def test_the_host_waits_at_most_once_a_step(config, ids):
    steps = []
    count, context = random_step(0, shift={END: -0.5}), images(0, 7)

    def step(words, state, context):
        steps.append(len(words))
        return count(words, state, context)

    keys = keys_of(context)
    with Waits() as waits:
        search_for(step, (torch.zeros_like(context),), (context,), ids, SearchConfig(**config), keys)
    assert 1 <= len(waits.names) <= len(steps)
    if not ids.must:
        assert min(steps) < max(steps)  # finished images leave the batch


# ---- the constraints by themselves


def left(constraint, *history: int, **arguments) -> list[int]:
    """The words 0..7 that may follow `history`."""
    log_probs = torch.zeros(1, 8)
    constraint(log_probs, torch.tensor([history], dtype=torch.long).view(1, -1), **arguments)
    assert ((log_probs == 0) | (log_probs == NEVER)).all()
    return (log_probs[0] == 0).nonzero()[:, 0].tolist()


def test_each_constraint():
    every = list(range(8))

    def but(*words: int) -> list[int]:
        return [word for word in every if word not in words]

    assert left(constraints.forbid, 5, words=[0, 3]) == but(0, 3)
    assert left(constraints.min_length, 5, length=2, end=END) == but(END)
    assert left(constraints.min_length, 5, 5, length=2, end=END) == every
    assert left(constraints.no_repeat_word) == every
    assert left(constraints.no_repeat_word, 4, 5) == but(5)
    assert left(constraints.no_repeat_ngram, 4, 5, 4, n=1) == but(4, 5)
    assert left(constraints.no_repeat_ngram, 4, 5, 6, 4, n=2) == but(5)
    assert left(constraints.no_repeat_ngram, 4, 5, 4, 6, 4, n=2) == but(5, 6)
    assert left(constraints.no_repeat_ngram, 4, 4, 4, n=3) == but(4)
    assert left(constraints.no_repeat_ngram, 4, 5, 6, 5, n=3) == every
    ending = partial(constraints.no_bad_ending, words=torch.tensor([6, 7]), end=END, max_length=3)
    assert left(ending) == left(ending, 5) == every
    assert left(ending, 6) == but(END)
    assert left(ending, 5, 5) == but(6, 7)
    assert left(ending, 5, 6) == but(6, 7, END)
    both = partial(constraints.require, words=torch.tensor([4, 5]), end=END)
    assert left(both, 5, 6) == but(END)
    assert left(both, 5, 6, 4) == every
    prefix = partial(constraints.begin_with, prefix=[0, 0], constraints=[partial(constraints.forbid, words=[0])])
    assert left(prefix) == left(prefix, 0) == [0]
    assert left(prefix, 0, 0) == but(0)
