"""The recurrent decoder: the lecture's formula, and teacher forcing the same as stepping."""

import pytest
import torch
import torch.nn.functional as F
from helpers import NO_DROPOUT

from captioner.config import ModelConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START
from captioner.models.decoder import FEATURE_NORM, Decoder

V, FEATURES = 11, 7
IMAGE_AS = ["every_step", "first_word", "initial_state"]
CAPTIONS = [[4, 5, 6, 7, 8], [9], [10, 4], [], [6, 6, 6]]


def make(cell: str = "lstm", layers: int = 1, **options) -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, layers=layers, **{"hidden_size": 6, "embedding_size": 5, **options})
    return Decoder(config, V, FEATURES).eval()


def padded(captions: list[list[int]], extra: int = 0) -> torch.Tensor:
    """(N, T + 2 + extra): START, words, END, PAD."""
    longest = max(map(len, captions)) + 2 + extra
    return torch.tensor([[START, *c, END] + [PAD] * (longest - len(c) - 2) for c in captions])


def teacher_forced(decoder: Decoder, v: torch.Tensor, words: torch.Tensor, image_of=None) -> torch.Tensor:
    image_of = torch.arange(len(words)) if image_of is None else image_of
    return decoder(v, words[:, :-1], image_of, Layout.of((words[:, 1:] != PAD).numpy()))


@pytest.fixture
def v() -> torch.Tensor:
    return torch.randn(len(CAPTIONS), FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("image_as", IMAGE_AS)
def test_stepping_equals_teacher_forcing(cell, layers, image_as, v):
    decoder, words = make(cell, layers, image_as=image_as), padded(CAPTIONS)
    real = words[:, 1:] != PAD
    expected = teacher_forced(decoder, v, words).log_softmax(-1)
    state, context = decoder.start(v)
    assert len(state) == (2 if cell == "lstm" else 1)
    stepped = []
    for t in range(words.shape[1] - 1):
        assert all(part.shape == (len(v), layers, 6) for part in state)
        log_probs, state = decoder.step(words[:, t], state, context)
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(v)), atol=1e-5)
        stepped.append(log_probs)
    assert torch.allclose(torch.stack(stepped, dim=1)[real], expected, atol=1e-5)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("image_as", IMAGE_AS)
def test_rows_of_state_and_context_are_exchangeable(cell, image_as, v):
    decoder, order = make(cell, 2, image_as=image_as), torch.tensor([3, 3, 0, 1])
    words = torch.tensor([4, 5, 6, 7, 8])
    state, context = decoder.start(v)
    _, state = decoder.step(torch.full((5,), START), state, context)
    expected, _ = decoder.step(words, state, context)
    taken, _ = decoder.step(words[order], tuple(p[order] for p in state), tuple(p[order] for p in context))
    assert torch.allclose(taken, expected[order], atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 3])
def test_before_the_first_word_everything_is_zero(cell, layers, v):
    state, _ = make(cell, layers).start(v)
    assert all(torch.equal(part, torch.zeros(len(v), layers, 6)) for part in state)


@torch.no_grad()
def test_the_lecture_s_formula(v):
    """h_t = tanh(W_xh e_t + W_hh h_{t-1} + W_ih v + b) with W_ih = W_xh P, v of length FEATURE_NORM."""
    decoder, caption = make("rnn"), [4, 5, 6, 7]
    weights = dict(decoder.rnn.layers[0].named_parameters())
    w_xh, w_hh = weights["weight_ih_l0"], weights["weight_hh_l0"]
    w_ih = w_xh @ decoder.project.weight  # (H, F)
    b = weights["bias_ih_l0"] + weights["bias_hh_l0"] + w_xh @ decoder.project.bias
    scaled = v[0] / v[0].norm() * FEATURE_NORM
    h, expected = torch.zeros(6), []
    for word in (START, *caption):
        h = torch.tanh(w_xh @ decoder.embedding.weight[word] + w_hh @ h + w_ih @ scaled + b)
        expected.append(decoder.output.weight @ h + decoder.output.bias)
    logits = teacher_forced(decoder, v[:1], padded([caption]))
    assert torch.allclose(logits, torch.stack(expected), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("image_as", ["first_word", "initial_state"])
def test_the_image_once(image_as, v):
    """h = tanh(W_xh P v + b) before START (Show and Tell), or h = tanh(P v), and then words alone, in two layers."""
    decoder, caption = make("rnn", 2, image_as=image_as), [4, 5, 6, 7]
    w = [dict(layer.named_parameters()) for layer in decoder.rnn.layers]
    image = decoder.project.weight @ (v[0] / v[0].norm() * FEATURE_NORM) + decoder.project.bias

    def layers(x, h):
        after = []
        for k in range(2):
            b = w[k]["bias_ih_l0"] + w[k]["bias_hh_l0"]
            after.append(torch.tanh(w[k]["weight_ih_l0"] @ x + w[k]["weight_hh_l0"] @ h[k] + b))
            x = after[1] + x if k else after[0]  # what enters the second layer goes around it, too
        return after, x

    h = image.tanh().split(6) if image_as == "initial_state" else layers(image, torch.zeros(2, 6))[0]
    expected = []
    for word in (START, *caption):
        h, top = layers(decoder.embedding.weight[word], h)
        expected.append(decoder.output.weight @ top + decoder.output.bias)
    assert torch.allclose(teacher_forced(decoder, v[:1], padded([caption])), torch.stack(expected), atol=1e-5)


@torch.no_grad()
def test_an_lstm_s_initial_state_has_h_and_c_of_every_layer(v):
    decoder = make("lstm", 3, image_as="initial_state")
    (h, c), (nothing,) = decoder.start(v)
    assert torch.equal(torch.stack([h, c], dim=1).flatten(1), decoder.project_image(v).tanh())
    assert h.shape == c.shape == (5, 3, 6)
    assert not torch.allclose(h, c)
    assert not nothing.any()


def test_the_image_enters_every_gate_at_every_step(v):
    """With W_ih = W_xh P, moving the embedding by P v is the same as the image, whatever the cell."""
    for cell in ("gru", "lstm"):
        decoder, words = make(cell), padded(CAPTIONS[:1])
        expected = teacher_forced(decoder, v[:1], words)
        with torch.no_grad():
            decoder.embedding.weight += decoder.project_image(v[:1])[0]
            decoder.project.weight.zero_()
            decoder.project.bias.zero_()
        assert torch.allclose(teacher_forced(decoder, v[:1], words), expected, atol=1e-5)


def test_logits_of_real_words_only_and_the_same_without_padding(v):
    decoder = make(layers=2)
    logits = teacher_forced(decoder, v, padded(CAPTIONS, extra=3))
    lengths = [len(c) + 1 for c in CAPTIONS]
    assert logits.shape == (sum(lengths), V)
    for i, part in enumerate(logits.split(lengths)):
        assert torch.allclose(part, teacher_forced(decoder, v[i : i + 1], padded([CAPTIONS[i]])), atol=1e-5)


@pytest.mark.parametrize("image_as", IMAGE_AS)
def test_captions_of_an_image_share_it(image_as, v):
    """Five captions of one image are the same as the image five times, and so are the gradients."""
    words, gradients = padded(CAPTIONS), []
    for features, image_of in ((v[:1], torch.zeros(5, dtype=torch.long)), (v[:1].expand(5, -1), torch.arange(5))):
        decoder = make("gru", 2, image_as=image_as)
        logits = teacher_forced(decoder, features, words, image_of)
        logits.square().sum().backward()
        gradients.append((logits.detach(), *(p.grad for p in decoder.parameters())))
    for shared, repeated in zip(*gradients, strict=True):
        assert torch.allclose(shared, repeated, atol=1e-4)


@pytest.mark.parametrize("image_as", IMAGE_AS)
def test_gradient_reaches_everything_but_padding(image_as, v):
    decoder = make(layers=2, image_as=image_as)
    F.cross_entropy(teacher_forced(decoder, v, padded(CAPTIONS)), torch.zeros(16, dtype=torch.long)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())
    assert not decoder.embedding.weight.grad[PAD].any()


def test_the_length_of_the_feature_does_not_count(v):
    decoder, words = make(), padded(CAPTIONS)
    expected = teacher_forced(decoder, v, words)
    for scaled in (1000 * v, v / 1000):
        assert torch.allclose(teacher_forced(decoder, scaled, words), expected, atol=1e-4)
    assert torch.allclose(teacher_forced(decoder, v.half(), words), expected, atol=1e-2)
    assert teacher_forced(decoder, torch.zeros_like(v), words).isfinite().all()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("image_as", IMAGE_AS)
def test_different_images_give_different_words(cell, image_as, v):
    decoder = make(cell, image_as=image_as)
    log_probs, _ = decoder.step(torch.full((5,), START), *decoder.start(v))
    for i in range(5):
        for k in range(i):
            assert (log_probs[i] - log_probs[k]).abs().max() > 1e-3


def test_dropout_only_in_training(v):
    decoder, words = make(layers=2), padded(CAPTIONS)
    expected = teacher_forced(decoder, v, words)
    assert torch.equal(teacher_forced(decoder, v, words), expected)
    assert torch.equal(expected, teacher_forced(make(layers=2, **NO_DROPOUT), v, words))
    assert torch.equal(expected, teacher_forced(make(layers=2, **NO_DROPOUT).train(), v, words))
    for name in NO_DROPOUT:
        decoder = make(layers=2, **{**NO_DROPOUT, name: 0.5}).train()
        assert not torch.allclose(teacher_forced(decoder, v, words), teacher_forced(decoder, v, words)), name


def test_tied_embeddings_are_one_tensor(v):
    decoder = make(hidden_size=5, tie_embeddings=True)
    assert decoder.output.weight is decoder.embedding.weight
    assert teacher_forced(decoder, v, padded(CAPTIONS)).shape[1] == V
    free = make(hidden_size=5)
    assert free.output.weight.data_ptr() != free.embedding.weight.data_ptr()
    assert sum(p.numel() for p in free.parameters()) == sum(p.numel() for p in decoder.parameters()) + V * 5
