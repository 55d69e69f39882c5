"""Gradients through time: an RNN worked by hand, every cell against autograd one state at a time, and the command."""

import json
import math
import shutil
import sys

import pytest
import torch
from helpers import arguments, is_one_line, make_captioner

from captioner.__main__ import main
from captioner.data.vocabulary import PAD, START
from captioner.models.captioner import Captioner
from captioner.training.gradients import gradient_norms, largest_singular_value, recurrent_matrices

WORDS = torch.tensor([[START, 4, 5, 6, 7, 8], [START, 9, 4, 6, PAD, PAD], [START, 6, 5, 4, 6, PAD]])
LENGTHS = torch.tensor([5, 3, 4])


def test_a_linear_rnn_by_hand():
    """h_t = W h_{t−1} + U[word]: the gradient is (Wᵀ)^d Cᵀ (p − onehot), whatever lies between."""
    random = torch.Generator().manual_seed(0)
    w, u, c = (torch.randn(shape, generator=random) for shape in ((4, 4), (11, 4), (11, 4)))
    w.requires_grad_()

    def step(words, state, context):
        h = state[0][:, 0] @ w.T + u[words]
        return torch.log_softmax(h @ c.T, dim=-1), (h.unsqueeze(1),)

    (norms,) = gradient_norms(step, (torch.zeros(3, 1, 4),), (), WORDS, LENGTHS)
    assert norms.shape == (3, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        h = torch.zeros(4)
        for t in range(length):
            h = w @ h + u[WORDS[row, t]]
        gradient = torch.softmax(c @ h, dim=0)
        gradient[WORDS[row, length]] -= 1
        gradient = c.T @ gradient
        for d in range(3):
            gradient = w.T @ gradient
            assert norms[row, d].item() == pytest.approx(gradient.norm().item(), rel=1e-4)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("image_as", ["every_step", "first_word", "initial_state"])
def test_every_cell_against_autograd_one_state_at_a_time(cell, layers, image_as):
    model = make_captioner(cell=cell, layers=layers, image_as=image_as)
    features = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    compare_with_autograd(model, features, 2 if cell == "lstm" else 1)


@pytest.mark.parametrize(("kind", "parts"), [("soft", 2), ("adaptive", 2), ("updown", 4)])
def test_attention_against_autograd_one_state_at_a_time(kind, parts):
    model = make_captioner(attention=kind, grid=2)
    compare_with_autograd(model, torch.randn(3, 4, 512, generator=torch.Generator().manual_seed(0)), parts)


def compare_with_autograd(model, features, parts):
    norms = gradient_norms(*model.start_search(features), WORDS, LENGTHS)
    assert len(norms) == parts
    for row, length in enumerate(LENGTHS.tolist()):
        for d in range(1, 4):
            step, state, context = model.start_search(features[row : row + 1])
            for t in range(length):
                if t == length - d:
                    state = leaves = tuple(part.detach().requires_grad_() for part in state)
                log_probs, state = step(WORDS[row : row + 1, t], state, context)
            (-log_probs[0, WORDS[row, length]]).backward()
            for part, leaf in zip(norms, leaves, strict=True):
                assert part[row, d - 1].item() == pytest.approx(leaf.grad.norm().item(), rel=1e-3)


def test_the_bound_of_the_lecture():
    """With every largest singular value at 1/2, the gradient of a tanh RNN at least halves with every state."""
    model = make_captioner(cell="rnn")
    with torch.no_grad():
        for weight in recurrent_matrices(model.decoder).values():
            weight *= 0.5 / torch.linalg.matrix_norm(weight, 2)
    assert largest_singular_value(model.decoder) == pytest.approx(0.5)
    (norms,) = gradient_norms(*model.start_search(torch.randn(3, 512)), WORDS, LENGTHS)
    assert (norms[:, 1:] <= 0.5 * norms[:, :-1]).all()
    assert (norms > 0).all()


def test_the_largest_singular_value_is_that_of_one_gate():
    model = make_captioner(cell="lstm", layers=2)
    matrices = list(recurrent_matrices(model.decoder).values())
    assert [tuple(matrix.shape) for matrix in matrices] == [(64, 16)] * 2
    with torch.no_grad():
        for matrix in matrices:
            matrix.zero_()
        matrices[1][16:32] = 3 * torch.eye(16)
        matrices[1][32:48] = -2 * torch.eye(16)
    assert largest_singular_value(model.decoder) == pytest.approx(3)


@pytest.mark.parametrize(("kind", "matrices"), [("soft", 1), ("adaptive", 1), ("updown", 2)])
def test_the_recurrent_matrices_of_attention(kind, matrices):
    """Each carries the h of an LSTM to its own gates: alone, with 3 on its diagonals, it gives c = σ(3) tanh(3)."""
    decoder = make_captioner(attention=kind, grid=2).decoder
    found = recurrent_matrices(decoder)
    assert [tuple(matrix.shape) for matrix in found.values()] == [(64, 16)] * matrices
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    for matrix in found.values():
        matrix.copy_(3 * torch.eye(16).repeat(4, 1))
    assert largest_singular_value(decoder) == pytest.approx(3)
    gates, keys, a = torch.zeros(1, len(decoder.input.bias)), torch.zeros(1, 4, 256), torch.zeros(1, 4, 16)
    for lstm in range(matrices):
        state = [torch.zeros(1, 16) for _ in range(2 * matrices)]
        state[2 * lstm][0, 5] = 1  # h
        _, new, _ = decoder.advance(gates, tuple(state), keys, a)
        assert new[2 * lstm + 1].nonzero().tolist() == [[0, 5]]  # c
        assert new[2 * lstm + 1][0, 5].item() == pytest.approx(math.tanh(3) / (1 + math.exp(-3)))


# ---- the command


@pytest.fixture
def gradients(cli, tiny, run):
    def call(*more):
        options = ["--annotations", tiny.annotations("val"), "--images", tiny.images("val")]
        options += ["--feature_cache", tiny.folder / "features"]
        return cli("gradients", "--checkpoint", run / "best.ckpt", *options, *more)

    return call


def test_the_command_measures_writes_and_draws(gradients, run, tmp_path):
    pytest.importorskip("matplotlib")
    file, image = tmp_path / "numbers.json", tmp_path / "image.png"
    options = [
        "--count",
        5,
        "--weights",
        "trained",
        "untrained",
        "--scale",
        1,
        3,
        "--json",
        file,
        "--output",
        image,
    ]
    code, out, err = gradients(*options)
    assert (code, err) == (0, "")
    curves = json.loads(file.read_text())
    assert [(curve["model"], curve["weights"], curve["scale"]) for curve in curves] == [
        (run.name, weights, scale) for weights in ("trained", "untrained") for scale in (1, 3)
    ]
    assert len(out.splitlines()) == 2 + 2 * len(curves)  # h and c
    for curve in curves:
        assert curve["captions"] == 5
        assert len(curve["h"]) == len(curve["c"]) >= 3
        assert all(math.isfinite(norm) and norm > 0 for norm in curve["h"] + curve["c"])
    one, three = (curves[i]["largest_singular_value"] for i in (0, 1))
    assert three == pytest.approx(3 * one)
    assert one == pytest.approx(largest_singular_value(Captioner.load(run / "best.ckpt").decoder))
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_untrained_weights_are_those_the_run_began_with(tiny, tmp_path, gradients):
    """With a tiny learning rate the trained weights equal them."""
    folder = tmp_path / "still"
    assert main(arguments(tiny, folder, "--train.lr", "1e-12", "--train.seed", 3, "--train.epochs", 1)) == 0
    file = tmp_path / "numbers.json"
    code, *_ = gradients(
        "--checkpoint", folder / "best.ckpt", "--weights", "trained", "untrained", "--seed", 3, "--json", file
    )
    assert code == 0
    *_, trained, untrained = json.loads(file.read_text())
    assert trained["model"] == folder.name
    assert trained["c"] == pytest.approx(untrained["c"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scale", "1", "0"], ["--scale", "above 0"]),
        (["--count", "0"], ["--count is 0"]),
    ],
)
def test_what_makes_no_sense_is_one_line(gradients, options, says):
    code, out, err = gradients(*options)
    assert (code, out) == (2, "")
    assert is_one_line(err, *says)


def test_a_model_with_attention_and_a_format_without_a_folder(cli, tiny, tmp_path):
    """As the shipped model; the images of a table lie beside it."""
    pytest.importorskip("matplotlib")
    make_captioner(attention="updown", grid=2).save(tmp_path / "updown.safetensors")
    shutil.copytree(tiny.images("val"), tmp_path / "set")
    rows = "".join(f"{path.name},a red square on green\n" for path in (tmp_path / "set").iterdir())
    (tmp_path / "set" / "captions.csv").write_text("image,caption\n" + rows)
    options = ("--annotations", tmp_path / "set" / "captions.csv", "--feature_cache", tmp_path / "features")
    options += ("--checkpoint", tmp_path / "updown.safetensors", "--json", tmp_path / "numbers.json")
    code, out, err = cli("gradients", *options, "--scale", 1, 2, "--output", tmp_path / "curves.png")
    assert (code, err) == (0, "")
    one, two = json.loads((tmp_path / "numbers.json").read_text())
    assert two["largest_singular_value"] == pytest.approx(2 * one["largest_singular_value"])
    assert all(len(one[part]) == 5 for part in ("h1", "c1", "h2", "c2"))
    assert len(out.splitlines()) == 2 + 2 * 4


def test_what_is_missing_is_one_line(cli, gradients, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = gradients("--output", tmp_path / "image.png")
    assert code == 2
    assert is_one_line(err, "matplotlib", "pip install -e '.[plot]'")


def test_a_trained_encoder_is_refused(gradients, tmp_path, weights):
    make_captioner(trained=1).save(tmp_path / "tuned.safetensors")
    code, _, err = gradients("--checkpoint", tmp_path / "tuned.safetensors")
    assert code == 2
    assert is_one_line(err, "frozen")
