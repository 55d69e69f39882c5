"""Beam search over step functions small enough to look at everything."""

import itertools
import random

import pytest
import torch

from captioner.config import ModelConfig, SearchConfig
from captioner.decoder import Decoder
from captioner.search import Found, beam
from captioner.vocabulary import END, PAD, START, UNK

BANNED = (PAD, START, UNK)
NEVER = float("-inf")


def random_step(seed: int, vocabulary: int = 7, size: int = 5, shift: dict[int, float] | None = None):
    """A recurrent step with random weights whose answer depends on state and context; `shift` is added to logits."""
    generator = torch.Generator().manual_seed(seed)
    embedding, recurrent, output = (
        torch.randn(*shape, generator=generator) for shape in ((vocabulary, size), (size, size), (size, vocabulary))
    )

    def step(words, state, context):
        h = torch.tanh(embedding[words] + state[0] @ recurrent + context[0])
        logits = 2 * h @ output
        for word, by in (shift or {}).items():
            logits[:, word] += by
        return torch.log_softmax(logits, dim=-1), (h,)

    return step


def pictures(seed: int, count: int, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def search(step, context: torch.Tensor, **config) -> Found:
    found = beam(
        step,
        (torch.zeros_like(context),),
        (context,),
        start=START,
        end=END,
        banned=BANNED,
        config=SearchConfig(**config),
    )
    shape = (len(context), config.get("n_best", 1))
    assert found.words.shape == (*shape, config["max_length"])
    assert all(part.shape == shape for part in found[1:])
    return found


def captions(found: Found, i: int) -> list[tuple[int, ...]]:
    """The captions of picture i."""
    return [
        tuple(words[:length])
        for words, length, score in zip(
            found.words[i].tolist(), found.lengths[i].tolist(), found.scores[i].tolist(), strict=True
        )
        if score > NEVER
    ]


def log_prob_of(step, v: torch.Tensor, words) -> float:
    """Sum of the steps' log-probabilities of `words` (5 numbers of the context v, one picture)."""
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
    step, context = random_step(seed), pictures(seed, 4)
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
    step, context = random_step(seed, shift={END: -1.0}), pictures(seed, 5)
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


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(4))
def test_batched_equals_one_by_one_in_any_order(config, seed):
    step, context = random_step(seed, shift={END: -0.5}), pictures(seed, 7)
    found = search(step, context, **config)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    permuted = search(step, context[order], **config)
    for i in range(7):
        single = search(step, context[i : i + 1], **config)
        place = order.tolist().index(i)
        assert captions(found, i) == captions(single, 0) == captions(permuted, place)
        assert torch.allclose(found.scores[i], single.scores[0], atol=1e-5)
        assert torch.allclose(found.scores[i], permuted.scores[place], atol=1e-5)


def scripted_step(words, state, context):
    """Says the picture's own caption, which stands in its context; the state counts the words."""
    place = state[0].long()  # (N, 1)
    log_probs = torch.full((len(words), 40), -20.0).scatter(1, context[0].gather(1, place), -0.01)
    return log_probs, (state[0] + 1,)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[0, 3], [3, 0], [0, 3, 0, 2], [4, 0, 4, 0], [0, 1, 2, 3, 4, 5], None])
@pytest.mark.parametrize("seed", range(3))
def test_every_picture_keeps_its_own_context(width, lengths, seed):
    """Pictures that end early leave rows of state and context behind; with K = 2 and half of the pictures ended after
    the first step, the number of rows is what it was before."""
    choose = random.Random(seed)
    lengths = lengths or [choose.randrange(6) for _ in range(choose.randrange(2, 12))]
    scripts = [[choose.randrange(4, 40) for _ in range(length)] for length in lengths]
    context = torch.tensor([script + [END] * (8 - len(script)) for script in scripts])
    found = beam(
        scripted_step,
        (torch.zeros(len(scripts), 1),),
        (context,),
        start=START,
        end=END,
        banned=BANNED,
        config=SearchConfig(beam=width, max_length=6),
    )
    assert [list(captions(found, i)[0]) for i in range(len(scripts))] == scripts
    assert found.ended.all()


@pytest.mark.parametrize("config", CONFIGS)
def test_special_words_are_never_produced(config):
    step = random_step(0, shift={PAD: 50.0, START: 60.0, UNK: 70.0})
    found = search(step, pictures(0, 6), **config)
    for i in range(6):
        assert captions(found, i)
        assert all(word > UNK for words in captions(found, i) for word in words)


@pytest.mark.parametrize("unlikely", [NEVER, -1e4, -30.0])
@pytest.mark.parametrize(("width", "n_best", "longest"), [(1, 1, 1), (1, 1, 5), (3, 2, 5), (5, 5, 1), (5, 5, 8)])
def test_without_an_end_the_live_beams_are_the_answer(unlikely, width, n_best, longest):
    step, context = random_step(0, vocabulary=30, shift={END: unlikely}), pictures(0, 3)
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
    step, context = random_step(seed), pictures(seed, 6)
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
    found = search(random_step(0, vocabulary=5), pictures(0, 3), beam=6, n_best=6, max_length=2)
    for i in range(3):  # (), (4,), (4, 4), and (4, 4) cut
        assert 3 <= len(captions(found, i)) <= 4
    assert (found.scores[:, 4:] == NEVER).all()


def test_a_length_penalty_favours_longer_captions():
    step, context = random_step(3), pictures(3, 20)
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
    decoder.output.weight *= 20  # captions that differ from picture to picture
    decoder.output.bias[END] -= 1
    v = torch.randn(6, 6)
    config = SearchConfig(beam=4, n_best=4, length_penalty=0.5, max_length=6)
    state, context = decoder.start(v)
    found = beam(decoder.step, state, context, start=START, end=END, banned=BANNED, config=config)
    said = set()
    for i in range(6):
        for k, caption in enumerate(captions(found, i)):
            words = torch.tensor([[START, *caption, *([END] if found.ended[i, k] else [])]])
            targets = words[:, 1:]
            logits = decoder(v[i : i + 1], words[:, :-1], torch.tensor([0]), torch.ones_like(targets, dtype=torch.bool))
            log_prob = logits.log_softmax(-1).gather(1, targets.T).sum().item()
            assert found.log_probs[i, k].item() == pytest.approx(log_prob, abs=1e-4)
        said.add(captions(found, i)[0])
    assert len(said) > 1
