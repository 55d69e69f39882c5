"""Checkpoints that need no other file, and ensembles of them."""

import json

import pytest
import torch
from helpers import ROOT, SHIPPED, is_one_line, make_captioner, refused
from safetensors import safe_open

from captioner import load
from captioner.__main__ import main
from captioner.config import ModelConfig
from captioner.data.dataset import load_batch
from captioner.data.vocabulary import START, Vocabulary
from captioner.errors import UserError
from captioner.models import checkpoint
from captioner.models.captioner import Captioner, Ensemble
from captioner.models.checkpoint import read_checkpoint, save_slim
from captioner.models.encoder import Encoder, weights_digest

PHOTOS = sorted((ROOT / "data" / "photos").glob("*.jpg"))


@pytest.mark.parametrize(
    ("trained", "options", "half"),
    [
        *((trained, {}, half) for trained in (0, 1) for half in (False, True)),
        *((0, options, True) for options in ({"tie_embeddings": True}, {"cell": "rnn", "layers": 2}, {"cell": "gru"})),
    ],
)
def test_save_and_load(tmp_path, images, trained, options, half):
    first, file = make_captioner(trained, **options), tmp_path / "model.safetensors"
    if trained:
        with torch.no_grad():
            first.encoder.resnet.layer4[0].conv1.weight += 0.01  # a trained encoder is saved
    first.save(file, half=half)
    again = Captioner.load(file)
    assert again.config == first.config
    assert again.vocabulary.words == first.vocabulary.words
    assert not again.training
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    state = again.state_dict()
    assert set(state) == set(first.state_dict())
    for name, value in first.state_dict().items():
        assert state[name].dtype == value.dtype
        if half and trained == 0 and name.startswith("encoder."):
            assert torch.equal(state[name], value)  # the frozen encoder comes from its own file, exactly
        elif half:
            assert torch.allclose(state[name], value.half().to(value.dtype), atol=1e-7), name
        else:
            assert torch.equal(state[name], value), name
    assert (again.decoder.output.weight is again.decoder.embedding.weight) == bool(options.get("tie_embeddings"))
    if not half:
        assert again.caption(images, n_best=2) == first.caption(images, n_best=2)
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        dtypes = {opened.get_tensor(name).dtype for name in names}
        assert set(opened.metadata()) == {"captioner"}
        assert set(json.loads(opened.metadata()["captioner"])) >= {"model", "vocabulary", "encoder_digest"}
    assert any(name.startswith("encoder.") for name in names) == bool(trained)
    assert torch.float32 not in dtypes if half else torch.float16 not in dtypes


def test_a_trained_run_loads_from_each_of_its_files(run, tiny):
    paths = sorted(tiny.images("val").iterdir())
    slim, best, last = (Captioner.load(run / name) for name in ("captioner.safetensors", "best.ckpt", "last.ckpt"))
    assert slim.config == best.config == last.config
    assert slim.vocabulary.words == best.vocabulary.words == last.vocabulary.words
    for name, value in best.decoder.state_dict().items():
        assert torch.allclose(slim.decoder.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    for a, b in zip(slim.caption(paths, n_best=1, beam=1), best.caption(paths, n_best=1, beam=1), strict=True):
        assert a[0].text == b[0].text
        assert a[0].log_prob == pytest.approx(b[0].log_prob, abs=0.02)
    assert all(isinstance(text, str) for text in last.caption(paths))
    assert load(str(run / "best.ckpt")).caption(paths[0]) == best.caption(paths[0])


def test_a_file_of_best_ckpt_is_plain(run):
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    json.dumps(checkpoint["captioner"])  # str, int, float, bool, list, dict
    assert all(isinstance(value, torch.Tensor) for value in checkpoint["state_dict"].values())


def edited(captioner: Captioner, file, change) -> None:
    """Save with another header or other tensors."""
    header, weights = captioner.header(), dict(captioner.weights())
    change(header, weights)
    checkpoint.save_slim(file, header, weights)


EDITS = {
    "header without a model": lambda header, weights: header.pop("model"),
    "header without words": lambda header, weights: header.pop("vocabulary"),
    "an option of another version": lambda header, weights: header["model"].update(attention=True),
    "a value out of range": lambda header, weights: header["model"].update(layers=9),
    "a word twice": lambda header, weights: header["vocabulary"].append("a"),
    "a word more": lambda header, weights: header["vocabulary"].append("more"),
    "another cell": lambda header, weights: header["model"].update(cell="gru"),
    "a tensor less": lambda header, weights: weights.pop("decoder.project.bias"),
    "a tensor more": lambda header, weights: weights.update(other=torch.ones(1)),
    "another format": lambda header, weights: header.update(format=999),
}


@pytest.mark.parametrize("change", EDITS)
def test_a_checkpoint_that_does_not_fit_itself_is_refused(captioner, tmp_path, change):
    file = tmp_path / "model.safetensors"
    edited(captioner, file, EDITS[change])
    with pytest.raises(UserError) as caught:
        Captioner.load(file)
    assert is_one_line(str(caught.value), str(file))


def test_other_encoder_weights_are_refused(captioner, tmp_path):
    file = tmp_path / "model.safetensors"
    edited(captioner, file, lambda header, weights: header.update(encoder_digest="0123456789abcdef"))
    with pytest.raises(UserError) as caught:
        Captioner.load(file)
    assert is_one_line(str(caught.value), str(file), "0123456789abcdef", weights_digest("resnet18"), "resnet18")


def test_a_trained_encoder_needs_no_weights_file(tmp_path, images, monkeypatch):
    first = make_captioner(1)
    first.save(tmp_path / "model.safetensors", half=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("no network"))
    assert Captioner.load(tmp_path / "model.safetensors").caption(images) == first.caption(images)


def test_frozen_stages_of_the_shipped_encoder_are_left_out(tmp_path):
    """Of stage 4 its parameters remain; a file with all tensors, as of earlier versions, can be opened, too."""
    config = ModelConfig(image_size=64, second_size=0, hidden_size=8, embedding_size=8, trainable_layers=1)
    torch.manual_seed(0)
    model = Captioner(config, Vocabulary(["a"]), Encoder(config), weights_digest("resnet50_v1")).eval()
    with torch.no_grad():
        model.encoder.resnet.layer4[0].conv1.weight += 0.01
    model.save(tmp_path / "slim.safetensors", half=False)
    header, weights = read_checkpoint(tmp_path / "slim.safetensors")
    assert {name.split(".")[2] for name in weights if name.startswith("encoder")} == {"layer4"}
    save_slim(tmp_path / "all.safetensors", header, model.state_dict(), half=False)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    for name in ("slim", "all"):
        again = Captioner.load(tmp_path / f"{name}.safetensors")
        assert torch.equal(again.features(images), model.features(images))
    model.save(tmp_path / "half.safetensors")
    stored = read_checkpoint(tmp_path / "half.safetensors")[1]
    assert stored["encoder.resnet.layer4.0.conv1.weight"].dtype == torch.int8
    half = Captioner.load(tmp_path / "half.safetensors")
    assert torch.cosine_similarity(half.features(images), model.features(images)).min() > 0.9999
    half.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "half.safetensors").read_bytes()
    files = [str(tmp_path / f"{name}.safetensors") for name in ("half", "slim")]
    assert main(["average", *files, "--output", str(tmp_path / "mean.safetensors")]) == 0
    mean = Captioner.load(tmp_path / "mean.safetensors")
    assert torch.allclose(mean.features(images), model.features(images), atol=1e-3)
    whole = {**header, "encoder_inside": True}  # as captioner export --to hf writes it
    save_slim(tmp_path / "whole.safetensors", whole, model.state_dict())
    features = Captioner.load(tmp_path / "whole.safetensors").features(images)
    assert torch.cosine_similarity(features, model.features(images)).min() > 0.9999
    damaged = {**stored, "encoder.resnet.layer4.0.conv1.weight.scale": torch.ones(3)}
    checkpoint.save_slim(tmp_path / "damaged.safetensors", header, damaged)
    refused(lambda: Captioner.load(tmp_path / "damaged.safetensors"), says=["scale", "damaged"])
    edited(model, tmp_path / "other.safetensors", lambda header, weights: header.update(encoder_digest="0" * 16))
    refused(lambda: Captioner.load(tmp_path / "other.safetensors"), says=["0" * 16])


def shipped() -> Captioner:
    assert SHIPPED.exists(), f"{SHIPPED} is missing: the model that ships with captioner belongs there"
    return Captioner.load()


def test_the_shipped_model_says_where_it_comes_from():
    assert shipped().config.encoder == "resnet50_v1"
    header, _ = read_checkpoint(SHIPPED)
    assert header["encoder_digest"] == weights_digest("resnet50_v1")
    assert SHIPPED.stat().st_size < 51e6


# ---- ensembles


def test_an_ensemble_of_the_same_model_is_the_model(captioner, images):
    options = {"beam": 3, "n_best": 3}
    twice = Ensemble([captioner, captioner], ["a", "b"]).eval()
    for alone, both in zip(captioner.caption(images, **options), twice.caption(images, **options), strict=True):
        assert [one.text for one in alone] == [one.text for one in both]
        assert [one.log_prob for one in alone] == pytest.approx([one.log_prob for one in both], abs=1e-4)


def test_an_ensemble_from_files_shares_the_frozen_encoder(captioner, images, tmp_path):
    other = make_captioner(cell="gru", hidden_size=8)
    captioner.save(tmp_path / "a.safetensors")
    other.save(tmp_path / "b.safetensors")
    both = load([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    first, second = both.members
    assert first.encoder is second.encoder
    features = first.features(load_batch(images[:5], 32)[0])
    words = torch.full((5,), START)
    step, state, context = both.start_search(features)
    found, after = step(words, state, context)
    each = [model.decoder.step(words, *model.decoder.start(features))[0].exp() for model in (first, second)]
    assert torch.allclose(found.exp(), (each[0] + each[1]) / 2, atol=1e-6)
    assert [part.shape[0] for part in after] == [5, 5, 5]  # h and c of the LSTM, h of the GRU
    assert len({*both.caption(images, min_length=3)}) > 1


def test_an_ensemble_with_a_trained_encoder_keeps_both(captioner, images):
    trained = make_captioner(1)
    with torch.no_grad():
        trained.encoder.resnet.layer4[0].conv1.weight += 0.1
    both = Ensemble([captioner, trained], ["a", "b"])
    assert both.members[0].encoder is not both.members[1].encoder
    assert len(both.caption(images)) == 5


def test_members_that_do_not_fit_are_refused(captioner):
    words = Vocabulary([*captioner.vocabulary.words[4:-1], "girl"])
    other = Captioner(captioner.config, words, captioner.encoder, "")
    with pytest.raises(UserError, match=r"^a and b have different vocabularies \(13 and 13 words\)"):
        Ensemble([captioner, other], ["a", "b"])
    with pytest.raises(UserError, match=r"^a and b take images of different sizes \(32 and 48 pixels\)"):
        Ensemble([captioner, make_captioner(image_size=48)], ["a", "b"])
