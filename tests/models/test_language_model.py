"""Language models: streams and truncated backpropagation, perplexity, the lecture's "hello", and the whole command."""

import json
import math
import random
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from helpers import NO_DROPOUT, is_one_line, make_captioner, train
from safetensors import safe_open
from torch.utils.data import DataLoader

from captioner.__main__ import main
from captioner.config import ModelConfig, TrainConfig
from captioner.data import text_stream as text
from captioner.data.text_stream import Streams
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import read_checkpoint
from captioner.models.init_from import init_from
from captioner.models.language_model import LanguageModel
from captioner.training.language_task import LanguageTask

CELLS = ["rnn", "gru", "lstm"]


def make(cell: str = "lstm", layers: int = 1, letters: str = "helo", **options) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, layers=layers, **{"hidden_size": 6, "embedding_size": 5, **NO_DROPOUT, **options})
    return LanguageModel(config, Vocabulary(list(letters), "char"))


def some(number: int, seed: int = 0) -> torch.Tensor:
    """Ids of a random text of the four letters."""
    return torch.randint(UNK + 1, UNK + 5, (number,), generator=torch.Generator().manual_seed(seed))


def read(model: LanguageModel, streams: Streams) -> tuple[list[float], LanguageTask]:
    """The loss of each chunk, the state carried; their gradients are added up, each by its number of tokens."""
    task = LanguageTask(model, TrainConfig(), steps=1)
    task.sums["train"] = []
    losses = []
    for k in range(len(streams)):
        loss = task.loss(streams[k], "train")
        (loss * (streams[k][1] != PAD).sum()).backward()
        losses.append(loss.item())
    return losses, task


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- streams


@pytest.mark.parametrize(("number", "streams", "steps"), [(50, 3, 5), (49, 7, 7), (10, 1, 100), (23, 4, 1), (2, 1, 1)])
def test_streams_hold_the_text_once_and_in_order(number, streams, steps):
    ids = some(number)
    cut = Streams(ids, streams, steps)
    chunks = [cut[k] for k in range(len(cut))]
    assert all(words.shape == targets.shape == (len(cut.inputs), words.shape[1]) for words, targets in chunks)
    assert {words.shape[1] for words, _ in chunks[:-1]} <= {steps}
    for part, whole in ((0, ids[:-1]), (1, ids[1:])):
        joined = torch.cat([chunk[part] for chunk in chunks], dim=1).flatten()
        assert torch.equal(joined[: number - 1], whole)
        assert (joined[number - 1 :] == PAD).all()
        assert len(joined) - (number - 1) < streams
    with pytest.raises(IndexError):
        cut[len(cut)]


def test_a_short_text_has_fewer_streams():
    assert Streams(some(101), 64, 35).inputs.shape == (2, 50)
    assert Streams(some(4), 64, 35).inputs.shape == (1, 3)


def test_start_and_unknown_words_are_no_targets():
    ids = torch.tensor([START, 4, UNK, END, START, UNK, 5, END])
    assert Streams(ids, 1, 10).targets.tolist() == [[4, PAD, END, PAD, PAD, 5, END]]
    assert Streams(ids, 1, 10).inputs.tolist() == [[START, 4, UNK, END, START, UNK, 5]]


def test_lines_stand_between_start_and_end():
    words, letters = Vocabulary(["a", "dog"]), Vocabulary(list("ab\n"), "char")
    assert text.encode_text("A dog.\n\n a cat\n", words, True).tolist() == [START, 4, 5, END, START, 4, UNK, END]
    assert text.encode_text("A dog.\n\n a cat\n", words, False).tolist() == [START, 4, 5, 4, UNK]
    assert text.encode_text("ab\nb", letters, True).tolist() == [START, 4, 5, END, START, 5, END]
    assert text.encode_text("ab\nb", letters, False).tolist() == [START, 4, 5, 6, 5]


def test_the_end_is_held_out_between_lines():
    lines = "\n".join(f"line {n}" for n in range(100))
    first, rest = text.hold_out(lines, 0.1)
    assert first + rest == lines
    assert rest.splitlines() == [f"line {n}" for n in range(100 - rest.count("line"), 100)]
    assert 9 <= rest.count("line") <= 12
    assert text.hold_out("0123456789", 0.2) == ("01234567", "89")


def test_captions_are_lines_in_random_order(tiny):
    annotations = json.loads(tiny.annotations("train").read_text())["annotations"]
    lines = text.read_corpus(tiny.annotations("train")).split("\n")
    written = [" ".join(a["caption"].split()) for a in annotations]
    assert sorted(lines) == sorted(written)
    assert lines != written
    assert lines == text.read_corpus(tiny.annotations("train")).split("\n")


# ---- truncated backpropagation through time


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_chunk_as_long_as_the_text_is_full_backpropagation(cell, layers):
    """The same gradients, number by number, as F.cross_entropy of the whole text, stepped word by word."""
    ids, model = some(12), make(cell, layers)
    read(model, Streams(ids, 1, 11))
    found = gradients(model)
    model.zero_grad()
    state, nats = None, 0.0
    for word, after in pairwise(ids):
        logits, state = model(word.view(1, 1), state)
        nats = nats + F.cross_entropy(logits[0], after.view(1))
    nats.backward()
    expected = gradients(model)
    assert set(found) == set(expected) >= {"decoder.embedding.weight", "decoder.output.bias"}
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_state_is_carried_and_the_gradient_is_not(cell, steps):
    ids, model = some(43), make(cell)
    whole, task = read(model, Streams(ids, 2, 21))
    full = gradients(model)
    model.zero_grad()
    cut = Streams(ids, 2, steps)
    losses, chunked = read(model, cut)
    # forward: the same nats
    counts = [int((cut[k][1] != PAD).sum()) for k in range(len(cut))]
    mean = sum(loss * number for loss, number in zip(losses, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(whole[0], abs=1e-6)
    for one, other in zip(task.state, chunked.state, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert not other.requires_grad
    # backward: the gradient of each chunk from the state before it, held constant
    found = gradients(model)
    assert not torch.allclose(
        found["decoder.rnn.layers.0.weight_hh_l0"], full["decoder.rnn.layers.0.weight_hh_l0"], atol=1e-4
    )
    model.zero_grad()
    for k in range(len(cut)):
        with torch.no_grad():
            _, state = model(cut.inputs[:, : k * steps]) if k else (None, None)
        logits, _ = model(cut[k][0], state)
        F.cross_entropy(logits.flatten(0, 1), cut[k][1].flatten(), ignore_index=PAD, reduction="sum").backward()
    for name, value in gradients(model).items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("cell", CELLS)
def test_the_language_model_is_the_decoder_with_the_image_off(cell):
    model = make(cell, 2).eval()
    decoder, words = model.decoder, some(8).view(2, 4)
    zeros = torch.zeros(2, 2, 6)
    state = (zeros, zeros) if cell == "lstm" else (zeros,)
    logits, after = model(words)
    for t in range(4):
        log_probs, state = decoder.step(words[:, t], state, (torch.zeros(2, 5),))
        assert torch.allclose(log_probs, logits[:, t].log_softmax(-1), atol=1e-5)
    for one, other in zip(state, after, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


class Watched(LanguageTask):
    """Notes the state that each chunk begins with."""

    def loss(self, batch, split):
        if not hasattr(self, "began"):
            self.began = []
        self.began.append((split, self.state))
        return super().loss(batch, split)


def fit(task: LanguageTask, streams: Streams, epochs: int) -> pl.Trainer:
    loader = DataLoader(streams, batch_size=None)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, **options)
    trainer.fit(task, loader, loader)
    return trainer


def test_each_epoch_and_each_validation_begins_anew():
    streams = Streams(some(31), 2, 5)
    task = Watched(make(), TrainConfig(), steps=6)
    fit(task, streams, epochs=2)
    assert [split for split, _ in task.began] == (["train"] * 3 + ["val"] * 3) * 2
    assert [state is None for _, state in task.began] == [True, False, False] * 4


# ---- perplexity


@pytest.mark.parametrize("size", [2, 7, 26])
def test_perplexity_of_a_uniform_model_is_the_number_of_its_words(size):
    """All logits equal: as many as there are in the vocabulary; the bits are its logarithm."""
    model = make(letters="abcdefghijklmnopqrstuvwxyz"[:size])
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.zero_()
    task = LanguageTask(model, TrainConfig(lr=1e-9), steps=1)
    ids = torch.randint(UNK + 1, UNK + 1 + size, (64,))
    scores = fit(task, Streams(ids, 3, 8), epochs=1).callback_metrics
    assert float(scores["val_perplexity"]) == pytest.approx(size + 4, rel=1e-4)
    assert float(scores["val_bits"]) == pytest.approx(math.log2(size + 4), rel=1e-4)


def test_perplexity_is_the_mean_over_tokens_not_over_chunks():
    model, ids = make().eval(), some(12)
    scores = fit(LanguageTask(model, TrainConfig(lr=1e-12), steps=2), Streams(ids, 1, 10), epochs=1).callback_metrics
    nats = F.cross_entropy(model(ids[None, :-1])[0][0], ids[1:])
    assert float(scores["val_loss"]) == pytest.approx(nats.item(), abs=1e-5)
    assert float(scores["val_perplexity"]) == pytest.approx(nats.exp().item(), rel=1e-4)


# ---- hello


def test_the_lecture_s_hello():
    """h, e, l, l → e, l, l, o with the vocabulary h, e, l, o and a tanh RNN: the second l needs the state."""
    model = make("rnn", letters="helo")
    ids = torch.tensor(model.vocabulary.encode("hello"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        logits, _ = model(ids[None, :-1])
        loss = F.cross_entropy(logits[0], ids[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    word, state = ids[:1].view(1, 1), None
    said = "h"
    for _ in range(4):
        logits, state = model(word, state)
        word = logits.argmax(-1)
        said += model.vocabulary.decode(word[0].tolist())
    assert said == "hello"
    # Without the state of the first l, the second is like it.
    first, _ = model(ids[None, 2:3])
    second, _ = model(ids[None, 3:4])
    assert torch.equal(first, second)


HELLO = {
    "data.level": "char",
    "data.no_lines": None,
    "data.min_count": 1,
    "data.temperature": 0,
    "data.prompt": "h",
    "data.sample_tokens": 5,
    "model.cell": "rnn",
    "model.hidden_size": 8,
    "model.embedding_size": 8,
    "model.dropout": 0,
    "model.input_dropout": 0,
    "train.epochs": 40,
    "train.lr": 0.05,
    "train.samples": 1,
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
}


def pretrain(file, out, options: dict) -> int:
    """``captioner pretrain`` in this process."""
    named = [str(word) for name, value in options.items() for word in (f"--{name}", value) if word is not None]
    return main(["pretrain", "--data.text", str(file), *named, "--output", str(out)])


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    """The folder of a run of ``captioner pretrain`` on the text "hello"."""
    folder = tmp_path_factory.mktemp("hello")
    (folder / "hello.txt").write_text("hello")
    file = folder / "hello.txt"
    assert pretrain(file, folder / "run", {**HELLO, "data.val_text": file}) == 0
    return folder / "run"


def test_hello_from_the_command_line(hello):
    last = (hello / "samples.md").read_text().strip().splitlines()
    assert last[-1] == "    hello"
    assert float(last[-3].split("val_bits ")[1].split()[0]) < 0.1
    assert {path.name for path in hello.iterdir()} == {
        *("best.ckpt", "last.ckpt", "lm.safetensors", "config.yaml", "samples.md", "logs")
    }


# ---- samples


def test_samples_depend_on_the_seed_and_the_temperature_alone():
    model = make(letters="abcdefgh").eval()
    drawn = model.generate(50, 20, seed=1)
    assert drawn == model.generate(50, 20, seed=1) != model.generate(50, 20, seed=2)
    assert len(set(drawn)) > 10
    greedy = model.generate(3, 20, temperature=0)
    assert len(set(greedy)) == 1
    assert greedy == model.generate(3, 20, temperature=1e-4)
    assert all(set(one) <= set("abcdefgh") and len(one) <= 20 for one in drawn)
    assert all(one.startswith("abc") for one in model.generate(5, 20, prompt="abc"))


def test_drawn_letters_are_as_frequent_as_the_model_says():
    model = make(letters="ab").eval()
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.copy_(torch.tensor([9.0, 9.0, -9.0, 9.0, math.log(3.0), 0.0]))  # PAD … UNK, a, b
    for temperature, share in ((1.0, 0.75), (0.5, 0.9)):
        letters = "".join(model.generate(200, 20, temperature))
        assert letters.count("a") / len(letters) == pytest.approx(share, abs=0.03)


# ---- the command


SMALL = {
    "data.min_count": 1,
    "data.batch_size": 4,
    "data.tbptt_steps": 5,
    "data.sample_tokens": 8,
    "model.hidden_size": 16,
    "model.embedding_size": 16,
    "train.epochs": 3,
    "train.samples": 2,
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
}


@pytest.fixture(scope="module")
def lm(tiny, tmp_path_factory):
    """The folder of a run on the captions of the tiny set."""
    out = tmp_path_factory.mktemp("lm") / "run"
    assert pretrain(tiny.annotations("train"), out, SMALL) == 0
    return out


def test_a_slim_file_has_words_and_no_image(lm):
    header, weights = read_checkpoint(lm / "lm.safetensors")
    assert (header["kind"], header["level"]) == ("language_model", "word")
    assert {name.split(".")[1] for name in weights} == {"embedding", "rnn", "output"}
    assert "square" in header["vocabulary"]
    assert (lm / "samples.md").read_text().count("\n    ") == 3 * 2
    with safe_open(lm / "lm.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


@pytest.mark.parametrize("name", ["lm.safetensors", "best.ckpt", "last.ckpt"])
def test_a_captioner_is_not_made_of_it_but_begins_with_it(lm, tiny, tmp_path, cli, name):
    code, _, err = cli("predict", tiny.images("val"), "--checkpoint", lm / name)
    assert code == 2
    assert is_one_line(err, name, "is a language model", "captioner train --init-from"), err


def test_pretraining_and_then_training(lm, tiny, tmp_path, capsys):
    still = ("--train.epochs", "1", "--train.lr", "1e-12", "--train.weight_decay", "0")
    assert train(tiny, tmp_path / "run", *still, "--init-from", lm / "lm.safetensors") == 0
    header, words = read_checkpoint(lm / "lm.safetensors")
    slim = Captioner.load(tmp_path / "run" / "captioner.safetensors")
    vocabulary = Vocabulary(header["vocabulary"])
    here = [i for i, word in enumerate(slim.vocabulary.words) if word in vocabulary.ids]
    there = [vocabulary.ids[slim.vocabulary.words[i]] for i in here]
    took = f"took embedding, rnn, output ({len(here) - 4} old words, 0 new, 0 lost); left project"
    assert took in capsys.readouterr().out
    assert len(here) > 10
    for name in ("embedding.weight", "rnn.layers.0.weight_hh_l0", "output.weight", "output.bias"):
        ours, theirs = slim.decoder.state_dict()[name], words[f"decoder.{name}"].float()
        ours, theirs = (ours, theirs) if name.startswith("rnn") else (ours[here], theirs[there])
        assert torch.allclose(ours, theirs, atol=2e-3), name


def test_a_resumed_run_ends_as_one_that_was_not(lm, tiny, tmp_path, cli):
    """Stopped in its third epoch, after the checkpoint of the second: bit for bit the same."""
    out, begin = tmp_path / "run", LanguageTask.training_step

    def stops(self, batch, i):
        if self.current_epoch == 2 and i == 1:
            raise KeyboardInterrupt
        return begin(self, batch, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageTask, "training_step", stops)
        assert pretrain(tiny.annotations("train"), out, SMALL) == 130
    assert not (out / "lm.safetensors").exists()
    code, _, err = cli("pretrain", "--config", out / "config.yaml", "--model.cell", "gru", "--resume")
    assert code == 2
    assert is_one_line(err, "model.cell was lstm and is gru"), err
    code, _, err = cli("pretrain", "--config", out / "config.yaml", "--resume")
    assert code == 0, err
    assert (out / "lm.safetensors").read_bytes() == (lm / "lm.safetensors").read_bytes()
    states = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (lm, out)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    code, said, _ = cli("pretrain", "--config", out / "config.yaml", "--resume", "--train.epochs", 4)
    assert code == 0
    assert "resumed with 4 epochs" in said
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, [], ["--data.text"]),
        (b"", [], ["is empty"]),
        (b"\xff\x00x", [], ["byte 0 is not UTF-8"]),
        (b"one two three", [], ["no word", "--data.min_count"]),
        (b"one two three four\n", ["--data.min_count", "1", "--data.val_share", "0.01"], ["--data.val_share"]),
        (b"a text\nof two", ["--data.min_count", "1", "--data.prompt", "a dog"], ["--data.prompt", "'dog'"]),
        (b"a text", ["--data.val_share", "1"], ["data.val_share is 1.0: expected"]),
        (b"a text", ["--data.tbptt_steps", "0"], ["data.tbptt_steps is 0: expected"]),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, cli, content, options, says):
    file = []
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
        file = ["--data.text", tmp_path / "text.txt"]
    code, _, err = cli("pretrain", *file, *options, "--output", tmp_path / "run")
    assert code == 2
    assert is_one_line(err, "captioner pretrain", *says), err
    assert not (tmp_path / "run").exists()


# ---- characters


def test_the_levels_do_not_mix(hello, tmp_path):
    with pytest.raises(UserError, match=r"--data.level is char there and word here"):
        init_from(make_captioner(), hello / "lm.safetensors")


def test_a_captioner_that_writes_letters(tiny, tmp_path, images):
    """Pre-trained on the letters of captions, trained on their images, saved and loaded."""
    lm, out = tmp_path / "lm", tmp_path / "run"
    assert pretrain(tiny.annotations("train"), lm, {**SMALL, "data.level": "char", "train.samples": 0}) == 0
    letters = ["--data.level", "char", "--data.max_length", "60", "--search.max_length", "12", "--train.epochs", "1"]
    assert train(tiny, out, *letters, "--init-from", lm / "lm.safetensors") == 0
    model = Captioner.load(out / "captioner.safetensors")
    assert model.vocabulary.level == "char"
    assert set("a square") <= set(model.vocabulary.words)
    said = model.caption(images, prefix="a red ", max_length=12)
    assert all(one.startswith("a red ") and len(one) <= 12 for one in said)
    with pytest.raises(UserError, match="must constrains words"):
        model.caption(images, must="square")
    assert Captioner.load(out / "last.ckpt").vocabulary.level == "char"


# ---- a text whose entropy is known


@pytest.mark.slow
@pytest.mark.parametrize("level", ["char", "word"])
def test_a_text_of_megabytes_is_learnt_to_its_entropy(tmp_path, capsys, level):
    """A Markov source: the perplexity of what it wrote, by its own probabilities, is the least there is."""
    draw = random.Random(0)
    units = "abcdefgh" if level == "char" else [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "o")]
    chances = {a: [draw.random() ** 4 for _ in units] for a in units}
    chances = {a: [c / sum(row) for c in row] for a, row in chances.items()}
    written = [units[0]]
    for _ in range(2_000_000 if level == "char" else 700_000):
        written += draw.choices(units, chances[written[-1]])
    bits = [-math.log2(chances[a][units.index(b)]) for a, b in pairwise(written)]
    (tmp_path / "text.txt").write_text(("" if level == "char" else " ").join(written))
    assert (tmp_path / "text.txt").stat().st_size >= 2_000_000
    least = 2 ** (sum(bits[-len(bits) // 20 :]) / (len(bits) / 20))
    options = {
        **{"data.level": level, "data.no_lines": None, "data.val_share": 0.05},
        **{"data.batch_size": 64, "data.tbptt_steps": 20, "train.epochs": 2, "train.lr": 0.02},
        **{"model.cell": "gru", "model.hidden_size": 32, "model.embedding_size": 16},
        **{"model.dropout": 0, "model.input_dropout": 0, "trainer.accelerator": "cpu", "trainer.precision": "32-true"},
    }
    assert pretrain(tmp_path / "text.txt", tmp_path / "run", options) == 0
    out, _ = capsys.readouterr()
    found = float(out.split("val_perplexity ")[-1].split()[0])
    assert least * 0.995 < found < least * 1.02
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["data"]["tbptt_steps"] == 20
