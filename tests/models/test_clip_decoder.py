"""The many-to-one encoder: absent frames do not matter, the order does; and it learns which way shapes move."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import NO_DROPOUT
from PIL import Image

from captioner.config import ModelConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, START
from captioner.errors import UserError
from captioner.models.clip_decoder import ClipDecoder, ClipEncoder
from captioner.models.decoder import Decoder

F = 6
CELLS = [("rnn", 1), ("gru", 2), ("lstm", 2)]


def config(cell="gru", layers=1, **options):
    return ModelConfig(cell=cell, layers=layers, frames=5, hidden_size=8, embedding_size=7, **NO_DROPOUT, **options)


def made(kind, cell, layers, *sizes):
    torch.manual_seed(0)
    return kind(config(cell, layers), *sizes, F).eval()


@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_it_is_the_last_hidden_state_of_torchs_layers(cell, layers):
    encoder = made(ClipEncoder, cell, layers)
    features = torch.rand(3, 5, F)
    x = encoder.project(features / (1 + encoder.norm.eps) ** 0.5)  # mean 0 and variance 1 so far
    for number, layer in enumerate(encoder.rnn.layers):
        x = layer(x)[0] + (x if number else 0)
    torch.testing.assert_close(encoder(features), x[:, -1])


def test_cells_stand_side_by_side():
    torch.manual_seed(0)
    encoder = ClipEncoder(config(grid=2), F).eval()
    features = torch.rand(2, 5, 4, F)
    swapped = features[:, :, [1, 0, 3, 2]]  # left and right
    assert (encoder(features) - encoder(swapped)).abs().max() > 1e-3
    padded = torch.cat([torch.zeros(2, 2, 4, F), features], dim=1)
    torch.testing.assert_close(encoder(padded), encoder(features))


def test_frames_are_compared_with_those_seen_in_training():
    encoder = made(ClipEncoder, "gru", 1).train()
    encoder.norm.momentum = 1.0
    features = 7 + torch.randn(4, 5, F)
    features[0, 3:] = 0
    encoder(features)
    seen = features[features.any(dim=2)]
    torch.testing.assert_close(encoder.norm.running_mean, seen.mean(dim=0))
    torch.testing.assert_close(encoder.norm.running_var, seen.var(dim=0))
    assert encoder(features[:1, :1]).isfinite().all()  # a batch of one frame
    torch.testing.assert_close(encoder.norm.running_mean, seen.mean(dim=0))


@pytest.mark.parametrize(("cell", "layers"), CELLS)
@pytest.mark.parametrize("places", [[0, 1, 2], [2, 3, 4], [0, 2, 4]])
def test_absent_frames_do_not_matter(cell, layers, places):
    encoder = made(ClipEncoder, cell, layers)
    short = torch.rand(2, 3, F)
    padded = torch.zeros(2, 5, F)
    padded[:, places] = short
    torch.testing.assert_close(encoder(padded), encoder(short))
    torch.testing.assert_close(encoder(padded.half()), encoder(short), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_the_order_matters(cell, layers):
    encoder = made(ClipEncoder, cell, layers)
    features = torch.rand(2, 5, F)
    assert (encoder(features) - encoder(features.flip(1))).abs().max() > 1e-3


def test_nothing_at_all_is_a_feature_too():
    encoder = made(ClipEncoder, "lstm", 1)
    assert encoder(torch.zeros(2, 5, F)).isfinite().all()


def test_gradients_reach_every_frame_that_is_there_and_no_other():
    encoder = made(ClipEncoder, "lstm", 2)
    features = torch.rand(2, 5, F)
    features[0, 3:] = 0
    features.requires_grad_()
    encoder(features).square().sum().backward()
    reached = features.grad.abs().sum(dim=2) > 0
    assert reached.tolist() == [[True] * 3 + [False] * 2, [True] * 5]


@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_the_decoder_steps_as_it_is_taught(cell, layers):
    decoder = made(ClipDecoder, cell, layers, 9)
    features = torch.rand(2, 5, F)
    words = torch.tensor([[START, 5, 6, 7], [START, 8, 4, END]])
    logits = decoder(features, words, torch.arange(2), Layout.of(np.ones((2, 4), dtype=bool))).view(2, 4, -1)
    state, context = decoder.start(features)
    for t in range(4):
        log_probs, state = decoder.step(words[:, t], state, context)
        torch.testing.assert_close(log_probs, logits[:, t].log_softmax(dim=1))


def test_it_is_the_decoder_of_images_behind_the_encoder():
    decoder = made(ClipDecoder, "lstm", 1, 9)
    v = decoder.frames(torch.rand(2, 5, F))
    plain = Decoder(config("lstm"), 9, 8)
    plain.load_state_dict({k: w for k, w in decoder.state_dict().items() if not k.startswith("frames.")})
    assert plain.project.in_features == v.shape[1] == 8


@pytest.mark.parametrize(("options", "says"), [({"frames": 1}, "frames is 1"), ({"frames": 500}, "frames is 500")])
def test_bad_numbers_of_frames(options, says):
    with pytest.raises(UserError, match=f"^model.{says}: expected 0 "):
        ModelConfig(**options)


def test_frames_and_attention_are_refused_together():
    with pytest.raises(UserError, match=r"^model\.frames is 8: expected 0 with attention[^\n]*$"):
        ModelConfig(frames=8, grid=7, attention="soft")


# ---- the whole, slowly


def right(captions: dict[str, str], images: list[dict], truth: dict[int, str]) -> tuple[float, float]:
    """Shares of the clips whose direction, and whose colour, the caption tells."""
    found_words = [re.findall(r"\w+", captions[image["file_name"]]) for image in images]
    wanted = [re.fullmatch(r"the (\w+) \w+ moves (\w+)", truth[image["id"]]).groups() for image in images]
    directions = [
        {"left", "right", "up", "down"} & set(words) == {w[1]} for words, w in zip(found_words, wanted, strict=True)
    ]
    colors = [w[0] in words for words, w in zip(found_words, wanted, strict=True)]
    return sum(directions) / len(images), sum(colors) / len(images)


@pytest.mark.slow
def test_it_learns_which_way_a_shape_moves_and_one_frame_does_not_tell(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moving = ("shapes", "--output", "data/moving", "--size", 64, "--moving")
    assert cli(*moving)[0] == 0
    data = json.loads((tmp_path / "data/moving/captions_val.json").read_text())
    truth = {row["image_id"]: row["caption"] for row in reversed(data["annotations"])}  # the first one of each
    options = ("--config", "moving", "--trainer.accelerator", "cpu", "--trainer.devices", 1)
    shares = {}
    for name, more in (("clips", ()), ("stills", ("--model.frames", 0, "--model.grid", 0, "--train.epochs", 8))):
        assert cli("train", *options, *more, "--output", f"runs/{name}")[0] == 0
        model = ("--checkpoint", f"runs/{name}/captioner.safetensors")
        code, out, _ = cli("predict", "data/moving/val/*.gif", *model)
        assert code == 0
        captions = dict(line.split("\t") for line in out.replace("data/moving/val/", "").splitlines())
        shares[name] = right(captions, data["images"], truth)
    print(shares)
    assert min(shares["clips"]) >= 0.9
    assert shares["stills"][0] < 0.4 < 0.9 < shares["stills"][1]

    # Backwards it moves the other way, for nearly all; one frame of it alone is a still.
    other = {"left": "right", "right": "left", "up": "down", "down": "up"}
    (tmp_path / "back").mkdir()
    for image in data["images"]:
        with Image.open(tmp_path / "data/moving/val" / image["file_name"]) as clip:
            frames = [(clip.seek(i), clip.convert("RGB"))[1] for i in range(clip.n_frames)]
        frames[-1].save(tmp_path / "back" / image["file_name"], save_all=True, append_images=frames[-2::-1])
    _, out, _ = cli("predict", "back/*.gif", "--checkpoint", "runs/clips/captioner.safetensors")
    captions = dict(line.removeprefix("back/").split("\t") for line in out.splitlines())
    turned = {i: re.sub(r"(?<=moves )\w+", lambda found: other[found[0]], text) for i, text in truth.items()}
    assert min(right(captions, data["images"], turned)) >= 0.9

    files = ("--annotations", "data/moving/captions_val.json", "--images", "data/moving/val")
    code, out, _ = cli("evaluate", "--checkpoint", "runs/clips/captioner.safetensors", *files)
    assert code == 0
    assert "CIDEr" in out
