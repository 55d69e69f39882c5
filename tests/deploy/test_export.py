"""Exported models give the captions of the original model; folders for the hub load like any checkpoint."""

import copy
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from helpers import ROOT, is_one_line, make_captioner

import captioner
from captioner.config import SearchConfig
from captioner.deploy import export
from captioner.deploy.export import EncoderGraph, StepGraph, export_graphs, export_hub
from captioner.deploy.model_card import Facts
from captioner.models.captioner import Captioner

pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")
from captioner.deploy.onnx_runner import Runner
from captioner.deploy.onnx_runner import main as run

MODELS = {
    "lstm": {},
    "gru, 3 layers": {"cell": "gru", "layers": 3},
    "rnn, first word": {"cell": "rnn", "image_as": "first_word"},
    "lstm, 2 layers, initial state": {"layers": 2, "image_as": "initial_state"},
    "soft": {"attention": "soft", "grid": 1},
    "adaptive": {"attention": "adaptive", "grid": 1},
    "updown": {"attention": "updown", "grid": 1},
}


@pytest.fixture(scope="module")
def model(weights):
    """With one convolution in the place of the ResNet, which takes seconds to export."""
    model = make_captioner()
    model.encoder = copy.deepcopy(model.encoder)
    model.encoder.resnet = torch.nn.Conv2d(3, 512, kernel_size=16, stride=16)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_graphs(model, "onnx", folder)
    return folder


@pytest.fixture(scope="module")
def runner(folder):
    return Runner(folder)


def some(model, number=5):
    return torch.randint(256, (number, 3, model.image_size, model.image_size), dtype=torch.uint8)


def same_graphs(model, runner):
    """Encoder and steps to 1e-4, for numbers of rows that were not exported."""
    for rows in (1, 3):
        images = some(model, rows)
        with torch.no_grad():
            step, state, context = model.start_search(images)
            begun = runner.encoder.run(None, {"images": images.numpy()})
            for ours, theirs in zip((*state, *context), begun, strict=True):
                np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
            words, parts = torch.full((rows,), 1), begun
            for _ in range(4):
                log_probs, state = step(words, state, context)
                given = dict(zip(runner.inputs, [words.numpy(), *parts], strict=True))
                after = runner.step.run(None, {name: given[name] for name in runner.needed})
                np.testing.assert_allclose(log_probs.numpy(), after[0], atol=1e-4)
                parts = [*after[1:], *begun[len(state) :]]
                words = log_probs.argmax(dim=1)


def same_captions(model, runner, **search):
    images = some(model, 6)
    expected = model.search(images, SearchConfig(**search))
    found = runner.search(images.numpy(), **search)
    assert [[runner.text(one) for one in each] for each in found] == [[one.text for one in each] for each in expected]
    for mine, its in zip(found, expected, strict=True):
        for a, b in zip(mine, its, strict=True):
            assert (a.log_prob, a.score) == pytest.approx((b.log_prob, b.score), abs=1e-3)
            assert a.ended == b.ended


class EagerSession:
    """Stands for an InferenceSession, but runs the module instead of its graph."""

    def __init__(self, module, inputs):
        self.module, self.inputs = module, inputs

    @torch.no_grad()
    def run(self, _, given):
        return [part.numpy() for part in self.module(*(torch.from_numpy(given[name]) for name in self.inputs))]


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_exported_modules_give_the_same_captions(weights, runner, options):
    """Every decoder without the seconds that exporting takes: the modules in the place of their graphs."""
    model, runner = make_captioner(**options), copy.copy(runner)
    _, state, context = model.start_search(some(model, 1))
    runner.config = {**runner.config, "state": len(state), "context": len(context)}
    names = [f"{kind}_{n}" for kind, parts in (("state", state), ("context", context)) for n in range(len(parts))]
    runner.inputs = ["words", *names]
    runner.needed = set(runner.inputs)
    runner.encoder = EagerSession(EncoderGraph(model), ["images"])
    runner.step = EagerSession(StepGraph(model, len(state)), runner.inputs)
    same_graphs(model, runner)
    for beam in (1, 5):
        same_captions(model, runner, beam=beam)


def test_exported_graphs_give_the_same_captions(model, runner):
    same_graphs(model, runner)
    for beam in (1, 5):
        same_captions(model, runner, beam=beam)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_graphs_of_every_decoder_give_the_same_captions(weights, tmp_path, options):
    model = make_captioner(**options)
    export_graphs(model, "onnx", tmp_path / "model")
    test_exported_graphs_give_the_same_captions(model, Runner(tmp_path / "model"))


@pytest.mark.parametrize(
    "search",
    [
        {"beam": 4, "n_best": 4},
        {"beam": 3, "length_norm": "average"},
        {"beam": 3, "length_penalty": 0.0},
        {"beam": 3, "max_length": 3, "n_best": 3},
        {"beam": 3, "min_length": 6, "max_length": 8},
        {"beam": 40, "n_best": 20, "max_length": 4},
    ],
    ids=str,
)
def test_the_beam_is_that_of_the_model(model, runner, search):
    same_captions(model, runner, **search)


def test_files_are_decoded_as_by_the_model(model, folder, images, capsys):
    assert run([str(folder), *map(str, images), "no.jpg", "--beam", "2"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{path}\t{model.caption(path, beam=2)}" for path in images]
    assert "no.jpg: no such file" in err


def test_the_runner_needs_no_torch(folder, images):
    """With any import that the runner has no right to made impossible."""
    script = """
import sys
class Forbidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"torch", "torchvision", "pytorch_lightning", "nltk", "pycocotools", "safetensors",
                                  "jsonargparse", "tqdm", "filelock", "yaml", "fsspec"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Forbidden())
from captioner.deploy.onnx_runner import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(images[0])], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{images[0]}\t")


def is_close_in_eight_bits(model, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "encoder.onnx", "step.onnx"]
    runner = Runner(folder)
    with torch.no_grad():
        step, state, context = model.start_search(some(model, 1))
        words = torch.full((1,), 1)
        log_probs, _ = step(words, state, context)
        parts = [words.numpy(), *(part.numpy() for part in (*state, *context))]
        found, *_ = runner.step.run(None, dict(zip(runner.inputs, parts, strict=True)))
    return 0 < np.abs(found - log_probs.numpy()).mean() < 0.1


def test_eight_bits(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "small")
    export._quantize(tmp_path / "small" / "step.onnx")
    assert is_close_in_eight_bits(model, tmp_path / "small")


@pytest.mark.slow
def test_eight_bits_from_the_command_line(cli, captioner, tmp_path):
    captioner.save(tmp_path / "tiny.safetensors", half=False)
    options = ("--to", "onnx", "--int8", "--checkpoint", tmp_path / "tiny.safetensors", "--output", tmp_path / "small")
    assert cli("export", *options)[0] == 0
    assert is_close_in_eight_bits(captioner, tmp_path / "small")


@pytest.mark.slow
def test_torch_export(captioner, tmp_path):
    export_graphs(captioner, "torch-export", tmp_path / "model")
    encoder, step = (torch.export.load(tmp_path / "model" / f"{name}.pt2").module() for name in ("encoder", "step"))
    images = some(captioner, 3)
    with torch.no_grad():
        eager, state, context = captioner.start_search(images)
        begun = encoder(images)
        for ours, theirs in zip((*state, *context), begun, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        words = torch.full((3,), 1)
        torch.testing.assert_close(eager(words, state, context)[0], step(words, *begun)[0], atol=1e-4, rtol=0)


def test_errors_of_export_are_one_line(cli, captioner, tmp_path, folder):
    checkpoint, clips = tmp_path / "tiny.safetensors", tmp_path / "clips.safetensors"
    captioner.save(checkpoint)
    make_captioner(frames=2).save(clips)
    for arguments, *says in (
        (("--to", "onnx", "--checkpoint", clips), "clips and albums"),
        (("--to", "torch-export", "--int8", "--checkpoint", checkpoint), "--int8", "onnx"),
        (("--to", "onnx", "--push", "a/b", "--checkpoint", checkpoint), "--push", "--to hf"),
    ):
        code, _, err = cli("export", "--output", tmp_path / "new", *arguments)
        assert code == 2
        assert is_one_line(err, *says)
    code, _, err = cli("export", "--to", "hf", "--output", folder, "--checkpoint", checkpoint)
    assert code == 2
    assert is_one_line(err, "exists already")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.safetensors", "clips.safetensors"}


def test_an_invalid_exported_model_is_one_line(folder, tmp_path, images, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "other" / "encoder.onnx").write_bytes(b"nonsense")
    for place in (tmp_path / "none", tmp_path, tmp_path / "other"):
        assert run([str(place), str(images[0])]) == 2
        _, err = capsys.readouterr()
        assert len(err.splitlines()) == 1
        assert "is not a model of captioner export" in err


# ---- the hub


@pytest.mark.parametrize("trained", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_folder_for_the_hub_is_complete(cli, weights, tmp_path, images, trained, monkeypatch):
    model, checkpoint = make_captioner(trained=trained), tmp_path / "tiny.safetensors"
    model.save(checkpoint, half=False)
    options = ("--title", "Squares", "--data", "thirty squares")
    code, _, err = cli("export", "--to", "hf", "--checkpoint", checkpoint, "--output", tmp_path / "hub", *options)
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    said = (tmp_path / "hub" / "README.md").read_text()
    assert said.startswith("---\nlibrary_name: captioner\npipeline_tag: image-to-text\n")
    assert "# Squares" in said
    assert "thirty squares" in said
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["model"]["encoder"] == "resnet18"
    expected = model.caption(list(images))
    monkeypatch.setattr("captioner.models.captioner.weights_digest", lambda *_: "others are here")
    monkeypatch.setattr(
        "captioner.models.encoder.weights_file", lambda *_: pytest.fail("the weights are in the folder")
    )
    assert captioner.load(tmp_path / "hub").caption(list(images)) == expected
    code, out, _ = cli("predict", "--checkpoint", tmp_path / "hub", images[0])
    assert (code, out) == (0, f"{images[0]}\t{expected[0]}\n")


def test_the_folder_of_a_run_is_a_checkpoint(run, tmp_path):
    assert Captioner.load(run).vocabulary.words == Captioner.load(run / "captioner.safetensors").vocabulary.words
    with pytest.raises(captioner.errors.UserError, match="has none of"):
        Captioner.load(tmp_path)


def test_calls_to_the_hub(cli, weights, tmp_path, monkeypatch):
    """With a stand-in for huggingface_hub: there is no network here."""
    model, asked = make_captioner(), []
    export_hub(model, tmp_path / "there", Facts(title="Squares"))

    class HfApi:
        def create_repo(self, name, exist_ok):
            asked.append(("create", name, exist_ok))

        def upload_folder(self, folder_path, repo_id, commit_message):
            assert (folder_path / "model.safetensors").is_file()
            asked.append(("upload", repo_id))
            return "https://hub.example.org/a/b"

    def snapshot_download(name, revision, allow_patterns):
        asked.append(("download", name, revision))
        if name == "a/none":
            raise OSError("404\nnot found")
        return str(tmp_path / "there")

    stand_in = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    checkpoint = tmp_path / "tiny.safetensors"
    model.save(checkpoint)
    code, out, _ = cli(
        "export", "--to", "hf", "--checkpoint", checkpoint, "--output", tmp_path / "new", "--push", "a/b"
    )
    assert code == 0
    assert out.splitlines()[-1] == "https://hub.example.org/a/b"
    assert captioner.load("hf://a/b@v2").vocabulary.words == model.vocabulary.words
    code, _, err = cli("predict", "--checkpoint", "hf://a/none", checkpoint)
    assert code == 2
    assert is_one_line(err, "hf://a/none cannot be fetched", "404 not found")
    assert asked == [
        ("create", "a/b", True),
        ("upload", "a/b"),
        ("download", "a/b", "v2"),
        ("download", "a/none", None),
    ]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = cli("predict", "--checkpoint", "hf://a/b", checkpoint)
    assert code == 2
    assert is_one_line(err, "pip install -e '.[hub]'")
