"""Averages of checkpoints: the mean tensor by tensor, in any order, of members that fit together."""

import pytest
import torch
from helpers import is_one_line, make_captioner, train

from captioner.data.vocabulary import Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import read_checkpoint
from captioner.models.weight_averaging import average, greedy_selection


@pytest.fixture
def members(tmp_path):
    """Three checkpoints whose decoders differ."""
    files = []
    for i in range(3):
        model = make_captioner(dropout=0.1 * i)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            for parameter in model.decoder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        files.append(tmp_path / f"{i}.safetensors")
        model.save(files[-1], half=False)
    return files


def test_the_mean_of_two_whatever_their_order(members, tmp_path, cli, images):
    a, b = members[:2]
    for order, name in (((a, b), "ab"), ((b, a), "ba")):
        code, said, err = cli("average", *order, "--output", tmp_path / f"{name}.safetensors")
        assert (code, err) == (0, "")
        assert "the average of 2 checkpoints" in said
    header, mean = read_checkpoint(tmp_path / "ab.safetensors")
    (_, first), (_, second) = read_checkpoint(a), read_checkpoint(b)
    assert set(mean) == set(first)
    for name, value in mean.items():
        assert torch.equal(value, ((first[name].double() + second[name].double()) / 2).float().half()), name
    assert all(torch.equal(value, mean[n]) for n, value in read_checkpoint(tmp_path / "ba.safetensors")[1].items())
    code, said, _ = cli("predict", *images, "--checkpoint", tmp_path / "ab.safetensors")
    assert code == 0
    assert len(said.splitlines()) == len(images)
    assert header["model"]["dropout"] == 0.0  # the first one's


def test_the_order_never_matters():
    generator = torch.Generator().manual_seed(0)
    states = [{"x": torch.randn(1000, generator=generator).half(), "n": torch.tensor(3)} for _ in range(7)]
    means = [average(states)["x"], average(states[::-1])["x"], average(states[3:] + states[:3])["x"]]
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[0], means[2])
    assert average(states)["n"] == 3


def test_the_average_of_one_model_with_itself(members, tmp_path, cli):
    assert cli("average", members[0], members[0], "--output", tmp_path / "same.safetensors")[0] == 0
    _, mean = read_checkpoint(tmp_path / "same.safetensors")
    assert all(torch.equal(mean[name], value.half()) for name, value in read_checkpoint(members[0])[1].items())


def test_members_that_do_not_fit(members, tmp_path, cli):
    other = tmp_path / "other.safetensors"

    def refused(*parts):
        code, _, err = cli("average", members[0], other, "--output", tmp_path / "mean.safetensors")
        assert code == 2
        assert is_one_line(err, str(other), *parts), err
        assert not (tmp_path / "mean.safetensors").exists()

    make_captioner(hidden_size=8, cell="gru").save(other)
    refused("model.hidden_size is 16 and 8", "model.cell is lstm and gru")
    model = make_captioner()
    model.encoder_digest = "0" * 16
    model.save(other)
    refused("encoder's weights", "0" * 16)
    model = make_captioner()
    words = list(model.vocabulary.words)
    model.vocabulary = type(model.vocabulary)([*words[4:-1], "cat"])
    model.save(other)
    refused("the vocabularies differ")
    model.vocabulary = Vocabulary("abcdefghi", "char")
    model.save(other)
    refused("data.level is word and char")
    other.write_bytes(b"nothing")
    refused("is not a captioner checkpoint")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "two checkpoints or more"),
        (("1", "--images", "folder"), "--annotations"),
        (("1", "--output", "mean.ckpt"), ".safetensors"),
    ],
)
def test_options_that_make_no_sense(cli, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1", "folder"):
        (tmp_path / name).touch()
    code, _, err = cli("average", "--output", "mean.safetensors", "0", *more)
    assert code == 2
    assert is_one_line(err, says)


def test_greedy_keeps_what_does_not_harm():
    worth = {(2,): 5, (0,): 4, (1,): 3, (2, 0): 4, (2, 1): 5, (2, 1, 0): 9}
    scored_sets = []

    def score(some):
        scored_sets.append(tuple(some))
        return worth[tuple(some)]

    assert greedy_selection(3, score) == ([2, 1], 5)
    assert scored_sets == [(0,), (1,), (2,), (2, 0), (2, 1)]


def test_a_greedy_selection_is_not_worse_than_its_members(members, tiny, tmp_path, cli):
    data = ("--annotations", tiny.annotations("val"), "--images", tiny.images("val"))
    code, said, err = cli("average", *members, "--output", tmp_path / "mean.safetensors", *data)
    assert (code, err) == (0, "")
    reached = float(said.split()[1])

    def scored(file):
        code, out, _ = cli("evaluate", "--checkpoint", file, *data, "--beam", 1)
        assert code == 0
        return float(next(line.split()[1] for line in out.splitlines() if line.startswith("CIDEr ")))

    assert reached >= max(scored(file) for file in members) - 0.01
    assert scored(tmp_path / "mean.safetensors") == pytest.approx(reached, abs=0.5)  # stored in fp16


def test_an_unreadable_image_stops_a_selection_unless_it_may_be_skipped(members, fresh, tmp_path, cli):
    """The option that the message names is one of average."""
    bad = fresh.images("val") / "013.png"
    data = ("--annotations", fresh.annotations("val"), "--images", fresh.images("val"))
    mean = tmp_path / "mean.safetensors"
    bad.write_bytes(b"no pixels")
    (fresh.images("val") / "015.png").unlink()
    for more in ((), ("--list", fresh.folder / "list.txt")):
        (fresh.folder / "list.txt").write_text("012.png\n013.png")
        code, _, err = cli("average", *members, "--output", mean, *data, *more)
        assert code == 2
        assert is_one_line(err, "013.png" if more else "015.png", "use --skip_bad_images")
        assert not mean.exists()
    code, said, err = cli("average", *members, "--output", mean, *data, "--skip_bad_images")
    assert code == 0
    assert is_one_line(err, "2 images skipped", "015.png")
    assert "CIDEr " in said


@pytest.mark.parametrize("options", [{"frames": 2}, {"level": "char"}], ids=str)
def test_a_selection_among_models_of_clips_or_characters(tiny, tmp_path, cli, options):
    """Their average keeps what it captions, and how."""
    files = []
    for i in range(2):
        frames = {name: value for name, value in options.items() if name == "frames"}
        model = make_captioner(**frames)
        if "level" in options:
            model.vocabulary = Vocabulary("abcdefghi", "char")  # as many as the words
        torch.nn.init.normal_(model.decoder.output.bias, generator=torch.Generator().manual_seed(i))
        files.append(tmp_path / f"{i}.safetensors")
        model.save(files[-1])
    data = ("--annotations", tiny.annotations("val"), "--images", tiny.images("val"))
    code, said, err = cli("average", *files, "--output", tmp_path / "mean.safetensors", *data)
    assert (code, err) == (0, "")
    assert "CIDEr " in said
    mean = Captioner.load(tmp_path / "mean.safetensors")
    assert (mean.frames, mean.vocabulary.level) == (options.get("frames", 0), options.get("level", "word"))


def test_the_best_epochs_are_kept(tiny, tmp_path, cli):
    """With the moving average, as best.ckpt, and as many after a resumption."""
    out = tmp_path / "run"
    options = ("--train.keep", 2, "--train.epochs", 3, "--train.ema_decay", 0.5, "--train.lr", 0.02)
    assert train(tiny, out, *options) == 0
    kept = sorted((out / "kept").iterdir())
    assert len(kept) == 2
    assert all(file.name.startswith("epoch-") and "-cider-" in file.name for file in kept)
    _, best = read_checkpoint(out / "best.ckpt")
    assert any(all(torch.equal(read_checkpoint(file)[1][n], best[n]) for n in best) for file in kept)
    code, _, err = cli("average", *kept, "--output", tmp_path / "mean.safetensors")
    assert (code, err) == (0, "")
    assert Captioner.load(tmp_path / "mean.safetensors").config == Captioner.load(kept[0]).config
    assert train(tiny, out, *options, "--resume") == 0
    assert sorted((out / "kept").iterdir()) == kept


@pytest.mark.slow
def test_a_trained_encoder_is_averaged_too(tmp_path, cli):
    files = []
    for change in (0.0, 0.5):
        model = make_captioner(trained=1)
        with torch.no_grad():
            model.encoder.resnet.layer4[0].conv1.weight += change
        files.append(tmp_path / f"{change}.safetensors")
        model.save(files[-1], half=False)
    assert cli("average", *files, "--output", tmp_path / "mean.safetensors")[0] == 0
    mean, first = (Captioner.load(file).encoder.resnet for file in (tmp_path / "mean.safetensors", files[0]))
    assert torch.allclose(mean.layer4[0].conv1.weight, first.layer4[0].conv1.weight + 0.25, atol=1e-3)
    assert torch.allclose(mean.layer1[0].conv1.weight, first.layer1[0].conv1.weight, atol=1e-3)
    assert mean.bn1.num_batches_tracked == first.bn1.num_batches_tracked


def test_average_refuses_other_tensors():
    with pytest.raises(UserError, match="same tensors"):
        average([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
