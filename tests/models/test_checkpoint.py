"""Checkpoint files: which one a path names, and what is refused. Every command takes the folder of a run."""

import pickle
import shutil

import pytest
import torch
from helpers import SHIPPED, is_one_line, refused, train

from captioner.config import ModelConfig
from captioner.data.vocabulary import Vocabulary
from captioner.deploy.demo import ModelCache
from captioner.errors import UserError
from captioner.models import checkpoint
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import parse_header, read_checkpoint, resolve_checkpoint, save_slim
from captioner.models.language_model import LanguageModel

# ---- which file


def read_vocabulary(path) -> Vocabulary:
    return parse_header(path, read_checkpoint(path)[0])[1]


def test_the_checkpoint_of_a_folder(tmp_path):
    """captioner.safetensors of a finished run, best.ckpt of one that still trains, model.safetensors of an export."""
    assert refused(resolve_checkpoint, tmp_path, says=[str(tmp_path), "best.ckpt", "name a checkpoint"])
    for name in ("best.ckpt", "lm.safetensors", "captioner.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
        (tmp_path / "last.ckpt").touch()
        assert resolve_checkpoint(tmp_path) == resolve_checkpoint(f"{tmp_path}/") == tmp_path / name
    assert resolve_checkpoint(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"
    refused(resolve_checkpoint, tmp_path / "none.ckpt", says=["there is no checkpoint", "none.ckpt", "captioner train"])
    assert resolve_checkpoint(None) == SHIPPED


def test_a_run_that_still_trains_is_opened(run, tmp_path):
    shutil.copy(run / "best.ckpt", tmp_path)
    state, best = (Captioner.load(path).state_dict() for path in (tmp_path, run / "best.ckpt"))
    assert all(torch.equal(value, best[name]) for name, value in state.items())


def test_the_vocabulary_of_a_language_model_s_run(tmp_path):
    model = LanguageModel(ModelConfig(hidden_size=4, embedding_size=4), Vocabulary(["a", "dog"]))
    save_slim(tmp_path / "lm.safetensors", model.header(), model.state_dict())
    assert read_vocabulary(tmp_path).words == model.vocabulary.words
    refused(Captioner.load, tmp_path, says=["lm.safetensors is a language model"])


@pytest.mark.parametrize("command", ["predict", "parts", "evaluate", "export", "gradients", "average", "serve"])
def test_a_run_is_a_checkpoint_to_every_command(run, tiny, tmp_path, cli, command):
    if command == "serve":
        pytest.importorskip("uvicorn")
    image, data = (
        tiny.images("val") / "012.png",
        ["--annotations", tiny.annotations("val"), "--images", tiny.images("val")],
    )
    code, out, err = cli(
        *{
            "predict": ("predict", image, "--checkpoint", run, "--checkpoint", run),
            "parts": ("predict", image, "--checkpoint", run, "--output", f"{tmp_path}/parts/"),
            "evaluate": ("evaluate", *data, "--checkpoint", run, "--compare_checkpoint", run),
            "export": ("export", "--checkpoint", run, "--to", "hf", "--output", tmp_path / "hf"),
            "gradients": ("gradients", *data, "--checkpoint", run, "--feature_cache", tmp_path / "cache"),
            "average": ("average", run, run, "--output", tmp_path / "mean.safetensors"),
            "serve": ("serve", "--checkpoint", run, "--must", "unheard"),
        }[command]
    )
    if command == "serve":  # the options are checked against the vocabulary of the model
        assert (code, is_one_line(err, "'unheard' is not in the vocabulary")) == (2, True), err
        return
    assert code == 0, err
    if command == "export":
        assert Captioner.load(tmp_path / "hf").vocabulary.words == Captioner.load(run).vocabulary.words
    if command == "gradients":
        assert f"| {run.name}, trained: h |" in out


def test_a_run_is_a_checkpoint_to_train_and_to_the_demo(run, tiny, tmp_path, capsys):
    models = ModelCache([str(run / "best.ckpt"), str(run)], "cpu")
    assert models.get(str(run)).vocabulary.words == read_vocabulary(run).words
    out, one = tmp_path / "run", ("--train.epochs", 1, "--data.vocabulary", run, "--init_from", run)
    assert train(tiny, out, *one) == 0
    assert f"{run}: took embedding, project, rnn, output" in capsys.readouterr().out
    assert read_vocabulary(out).words == read_vocabulary(run).words


# ---- what is refused


class Marker:
    """Unpickling this writes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(tmp_path, file) -> None:
    file.write_bytes(pickle.dumps(Marker(tmp_path / "marker")))


def torch_pickled(tmp_path, file) -> None:
    torch.save({"state_dict": {}, "captioner": {}, "more": Marker(tmp_path / "marker")}, file)


NOT_CHECKPOINTS = {
    "empty": lambda folder, file: file.write_bytes(b""),
    "text": lambda folder, file: file.write_text("no model\n" * 100),
    "pickle": pickled,
    "pickle with code": torch_pickled,
    "other model": lambda folder, file: torch.save({"weight": torch.ones(2)}, file),
    "tensor": lambda folder, file: torch.save(torch.ones(2), file),
    "folder": lambda folder, file: file.mkdir(),
    "missing": lambda folder, file: None,
}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pt", ""])
@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, kind, suffix):
    file = tmp_path / f"model{suffix}"
    NOT_CHECKPOINTS[kind](tmp_path, file)
    with pytest.raises(UserError) as caught:
        Captioner.load(file)
    assert is_one_line(str(caught.value), str(file))
    assert not (tmp_path / "marker").exists()  # no code was run


@pytest.mark.parametrize("name", ["best.ckpt", "captioner.safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(run, tmp_path, name, share):
    whole = (run / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as caught:
        Captioner.load(tmp_path / name)
    assert is_one_line(str(caught.value), str(tmp_path / name))


def test_a_failed_save_leaves_the_old_file(captioner, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    captioner.save(file)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(UserError, match="No space"):
        captioner.save(file)
    assert file.read_bytes() == before


def test_a_mistake_of_captioner_itself_is_not_a_damaged_checkpoint(captioner, tmp_path, monkeypatch):
    captioner.save(tmp_path / "model.safetensors")

    def broken(*_):
        raise AttributeError("a mistake in the code")

    monkeypatch.setattr(checkpoint, "validate_tensors", broken)
    with pytest.raises(AttributeError, match="mistake"):
        read_checkpoint(tmp_path / "model.safetensors")
