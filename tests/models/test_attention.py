"""The decoder with attention over a grid: each kind by the formulas of its paper; teacher forcing equals stepping."""

import pytest
import torch
from helpers import NO_DROPOUT
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.config import ModelConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START
from captioner.models.attention import FEW, AttentionDecoder
from captioner.models.decoder import FEATURE_NORM

V, FEATURES, CELLS, E, H, D = 11, 7, 9, 5, 6, 4
KINDS = ("soft", "adaptive", "updown")
CAPTIONS = [[4, 5, 6, 7, 8], [9], [10, 4], [], [6, 6, 6]]


def make(kind: str, **options) -> AttentionDecoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": H, "embedding_size": E, "attention_size": D}
    return AttentionDecoder(ModelConfig(grid=3, attention=kind, **{**sizes, **options}), V, FEATURES).eval()


def padded(captions: list[list[int]], extra: int = 0) -> torch.Tensor:
    longest = max(map(len, captions)) + 2 + extra
    return torch.tensor([[START, *c, END] + [PAD] * (longest - len(c) - 2) for c in captions])


def teacher_forced(decoder, v: torch.Tensor, words: torch.Tensor, image_of=None) -> torch.Tensor:
    image_of = torch.arange(len(words)) if image_of is None else image_of
    return decoder(v, words[:, :-1], image_of, Layout.of((words[:, 1:] != PAD).numpy()))


@pytest.fixture
def v() -> torch.Tensor:
    return torch.randn(len(CAPTIONS), CELLS, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_stepping_equals_teacher_forcing(kind, v):
    decoder, words = make(kind), padded(CAPTIONS)
    expected = teacher_forced(decoder, v, words).log_softmax(-1)
    state, context = decoder.start(v)
    assert all(torch.equal(part, torch.zeros(len(v), H)) for part in state)
    stepped = []
    for t in range(words.shape[1] - 1):
        log_probs, state = decoder.step(words[:, t], state, context)
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(v)), atol=1e-5)
        stepped.append(log_probs)
    assert torch.allclose(torch.stack(stepped, dim=1)[words[:, 1:] != PAD], expected, atol=1e-5)


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.size = max(self.size, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_attends_to_a_few_images_at_a_time(kind):
    decoder, beams, v = make(kind), 5, torch.randn(3 * FEW + 1, CELLS, FEATURES)
    words = torch.randint(4, V, (len(v) * beams,))
    found = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            state, context = decoder.start(v)
            state = tuple(torch.ones_like(part).repeat_interleave(beams, dim=0) for part in state)
            with Largest() as largest:
                found.append((decoder.step(words, state, context)[0], largest.size))
    (at_once, all_cells), (in_parts, some_cells) = found
    assert torch.allclose(in_parts, at_once, atol=1e-6)
    assert all_cells == len(v) * beams * CELLS * D > some_cells


@pytest.mark.parametrize("kind", KINDS)
def test_beams_of_an_image_stand_side_by_side(kind, v):
    """Two rows an image, then reordered among them: the same as each row with its image alone."""
    decoder = make(kind)
    state, context = decoder.start(v[:2])
    state = tuple(part.repeat_interleave(2, dim=0) for part in state)
    _, state = decoder.step(torch.tensor([4, 5, 6, 7]), state, context)
    state = tuple(part[torch.tensor([1, 1, 2, 3])] for part in state)
    together, _ = decoder.step(torch.tensor([8, 9, 10, 4]), state, context)
    for row, (image, words) in enumerate([(0, (5, 8)), (0, (5, 9)), (1, (6, 10)), (1, (7, 4))]):
        state, context = decoder.start(v[image : image + 1])
        for word in words:
            log_probs, state = decoder.step(torch.tensor([word]), state, context)
        assert torch.allclose(together[row], log_probs[0], atol=1e-5)


def by_hand(decoder: AttentionDecoder, v: torch.Tensor, caption: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits after START and each word of one image (P, F), and the weights, straight from the formulas."""
    w = {name: value.detach() for name, value in decoder.state_dict().items()}
    linear = torch.nn.functional.linear
    v = v * FEATURE_NORM / v.mean(0).norm()
    a = linear(v, w["cells.weight"], w["cells.bias"]).relu()
    image = linear(v.mean(0), w["project.weight"], w["project.bias"])

    def attend(h, a):
        keys, query = linear(a, w["keys.weight"], w["keys.bias"]), linear(h, w["query.weight"])
        alpha = linear(torch.tanh(keys + query), w["score.weight"])[:, 0].softmax(0)
        return alpha @ a, alpha

    def lstm(gates, c):
        i, f, g, o = gates.split(H)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    h, c, h1, c1, logits, weights = *torch.zeros(4, H), [], []
    for word in (START, *caption):
        gates = linear(w["embedding.weight"][word] + image, w["input.weight"], w["input.bias"])
        if decoder.kind == "soft":
            z, alpha = attend(h, a)
            z = linear(h, w["gate.weight"], w["gate.bias"]).sigmoid() * z
            h, c = lstm(gates + linear(torch.cat([z, h]), w["recurrent.weight"]), c)
            out = h + linear(z, w["seen.weight"], w["seen.bias"])
        elif decoder.kind == "adaptive":
            gates = gates + linear(h, w["recurrent.weight"])
            h, c = lstm(gates[: 4 * H], c)
            s = linear(gates[4 * H :].sigmoid() * c.tanh(), w["sentinel.weight"], w["sentinel.bias"]).relu()
            z, alpha = attend(h, torch.cat([a, s[None]]))
            out = h + linear(z, w["seen.weight"], w["seen.bias"])
        else:
            h1, c1 = lstm(gates + linear(torch.cat([h1, h]), w["recurrent.weight"]), c1)
            z, alpha = attend(h1, a)
            h, c = lstm(linear(torch.cat([z, h1, h]), w["language.weight"], w["language.bias"]), c)
            out = h
        logits.append(linear(out, w["output.weight"], w["output.bias"]))
        weights.append(alpha)
    return torch.stack(logits), torch.stack(weights)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_formulas_by_hand(kind, v):
    decoder, caption = make(kind), [4, 5, 6]
    logits, weights = by_hand(decoder, v[0], caption)
    assert torch.allclose(teacher_forced(decoder, v[:1], padded([caption])), logits, atol=1e-5)
    assert torch.allclose(decoder.attention_weights(v[:1], torch.tensor([[START, *caption]]))[0], weights, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_real_words_only_and_the_same_without_padding(kind, v):
    decoder = make(kind)
    logits = teacher_forced(decoder, v, padded(CAPTIONS, extra=3))
    lengths = [len(c) + 1 for c in CAPTIONS]
    assert logits.shape == (sum(lengths), V)
    for i, part in enumerate(logits.split(lengths)):
        assert torch.allclose(part, teacher_forced(decoder, v[i : i + 1], padded([CAPTIONS[i]])), atol=1e-5)
    real = padded(CAPTIONS)[:, 1:] != PAD
    real[0, 2] = real[2, -1] = real[4, 3] = False  # an UNK in the middle, and at the very end
    fewer = decoder(v, padded(CAPTIONS)[:, :-1], torch.arange(5), Layout.of(real.numpy()))
    assert torch.allclose(fewer, logits[real[padded(CAPTIONS)[:, 1:] != PAD]], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_an_image_share_it(kind, v):
    words, gradients = padded(CAPTIONS), []
    shared = (v[:2], torch.tensor([0, 0, 1, 0, 1]))
    for features, image_of in (shared, (shared[0][shared[1]], torch.arange(5))):
        decoder = make(kind)
        logits = teacher_forced(decoder, features, words, image_of)
        logits.square().sum().backward()
        gradients.append((logits.detach(), *(p.grad for p in decoder.parameters())))
    for together, repeated in zip(*gradients, strict=True):
        assert torch.allclose(together, repeated, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_everything_but_padding(kind, v):
    decoder = make(kind)
    teacher_forced(decoder, v, padded(CAPTIONS)).log_softmax(1)[:, 4].sum().backward()
    assert {n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert not decoder.embedding.weight.grad[PAD].any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_is_invariant_to_the_order_of_the_cells(kind, v):
    """Attention is over a set; the maps move with the cells; the length of the features does not count."""
    decoder, words, order = make(kind), padded(CAPTIONS), torch.randperm(CELLS, generator=torch.manual_seed(3))
    expected = teacher_forced(decoder, v, words)
    assert torch.allclose(teacher_forced(decoder, v[:, order], words), expected, atol=1e-5)
    maps, moved = (decoder.attention_weights(each, words)[..., :CELLS] for each in (v, v[:, order]))
    assert torch.allclose(maps[..., order], moved, atol=1e-5)
    assert torch.allclose(teacher_forced(decoder, 1000 * v, words), expected, atol=1e-4)
    other = v - v.mean(1, keepdim=True) + v.mean(1, keepdim=True).roll(1, 0)
    assert not torch.allclose(teacher_forced(decoder, other, words), expected, atol=1e-2)
    spread = (v - v.mean(1, keepdim=True)) * 3 + v.mean(1, keepdim=True)  # the same mean
    assert not torch.allclose(teacher_forced(decoder, spread, words), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_weights(kind, v):
    """Weights of every word, END's too, that add up to 1; nothing at padding."""
    words = padded(CAPTIONS)
    maps = make(kind).attention_weights(v, words)
    assert maps.shape == (*words.shape, CELLS + (kind == "adaptive"))
    assert torch.allclose(maps.sum(2), (words != PAD).float(), atol=1e-5)
    assert (maps >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_only_in_training(kind, v):
    words = padded(CAPTIONS)
    expected = teacher_forced(make(kind), v, words)
    assert torch.equal(expected, teacher_forced(make(kind, **NO_DROPOUT).train(), v, words))
    for name in (*NO_DROPOUT, "cell_dropout"):
        decoder = make(kind, **{**NO_DROPOUT, name: 0.5}).train()
        assert not torch.allclose(teacher_forced(decoder, v, words), teacher_forced(decoder, v, words)), name


def test_images_are_shown_without_some_of_their_cells_in_training(v):
    """With two thirds dropped the mean is that of three cells, others each time; all of them count outside training."""
    decoder = make("soft", **{**NO_DROPOUT, "cell_dropout": 0.67}).train()
    means = set()
    for _ in range(20):
        image, keys, cells = decoder.project_image(v[:1])
        assert keys.shape == (1, 3, D)
        assert cells.shape == (1, 3, E)
        means.add(round(image[0, 0].item(), 5))
    assert len(means) > 5
    words = padded(CAPTIONS)
    assert torch.equal(teacher_forced(decoder.eval(), v, words), teacher_forced(make("soft"), v, words))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forget_bias_is_1_at_first(kind):
    decoder = make(kind)
    layers = [decoder.input] + ([decoder.language] if kind == "updown" else [])
    for layer in layers:
        expected = torch.zeros_like(layer.bias)
        expected[H : 2 * H] = 1
        assert torch.equal(layer.bias, expected)


def test_tied_embeddings_are_one_tensor(v):
    decoder = make("updown", embedding_size=H, tie_embeddings=True)
    assert decoder.output.weight is decoder.embedding.weight
    assert teacher_forced(decoder, v, padded(CAPTIONS)).shape[1] == V
