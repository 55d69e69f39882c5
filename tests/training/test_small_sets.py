"""Defaults for few captions, and a model of a few hundred images."""

import doctest

import pytest
import yaml
from helpers import NO_DROPOUT, SHADES, arguments, captions_of, make_captioner, train, typed, write_set

import captioner.training.small_sets
from captioner.config import DataConfig, TrainConfig
from captioner.models.captioner import Captioner
from captioner.training.small_sets import SMALL, small_set_options


def test_the_example_of_the_docstring_holds():
    found = doctest.testmod(captioner.training.small_sets)
    assert found.attempted > 0 == found.failed


@pytest.mark.parametrize("fine_tuning", [False, True])
@pytest.mark.parametrize("captions", [1, 12, 100, 300, 1500, 4000, SMALL - 1])
def test_few_captions_make_enough_steps_and_the_average_moves(captions, fine_tuning):
    found = small_set_options(captions, fine_tuning)
    batches = -(-captions // found["data.batch_size"])
    steps = batches * found["train.epochs"]
    aim = 200 if fine_tuning else 600
    assert 0.7 * aim <= steps <= max(1.3 * aim, batches)
    assert found["train.ema_decay"] ** steps < 0.01
    assert found["data.batch_size"] <= DataConfig.batch_size
    for name, value in found.items():  # the options exist, and may have these values
        group, option = name.split(".")
        assert getattr({"data": DataConfig, "train": TrainConfig}[group](**{option: value}), option) == value


def test_the_average_is_over_a_tenth_of_the_steps_that_are_given():
    assert small_set_options(1500, True, batch_size=150, epochs=20)["train.ema_decay"] == 0.95  # of 200


def test_fewer_captions_have_smaller_batches():
    sizes = [small_set_options(captions, False)["data.batch_size"] for captions in range(1, SMALL, 97)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 256)


def test_many_captions_have_the_other_defaults():
    assert small_set_options(SMALL, False) == small_set_options(10 * SMALL, True) == {}


CHOSEN = ("data.batch_size", "train.epochs", "train.ema_decay")  # of the options that helpers.SMALL types


def without(words: list[str], *names: str) -> list[str]:
    for name in names:
        at = words.index(f"--{name}")
        words = words[:at] + words[at + 2 :]
    return words


def test_what_is_not_given_is_chosen_and_said(tiny, tmp_path, cli):
    start, out = tmp_path / "start.safetensors", tmp_path / "run"
    make_captioner().save(start)
    words = without(arguments(tiny, out, "--init-from", start, "--train.epochs", 2), *CHOSEN)  # epochs twice
    code, said, err = cli(*words)
    assert code == 0, err
    (line,) = [line for line in said.splitlines() if line.startswith("chosen")]
    assert line == "chosen for 33 captions: --data.batch_size 16 --train.ema_decay 0.5 --train.lr 0.0001"
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert (stored["data"]["batch_size"], stored["train"]["epochs"], stored["train"]["lr"]) == (16, 2, 1e-4)
    assert cli("train", "--resume", "--output", out, "--train.epochs", 3)[0] == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["ema_decay"] == 0.5


def test_what_is_given_in_a_config_is_kept(tiny, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.01}")
    assert train(tiny, tmp_path / "run", "--config", tmp_path / "mine.yaml", "--train.epochs", 1) == 0
    assert "chosen" not in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["lr"] == 0.01


@pytest.mark.slow
def test_300_images_do_not_make_all_captions_alike(tmp_path, cli):
    """``--config few_images`` from a trained model with a fine-tuned stage, on captions with words that it lacks."""
    first = write_set(tmp_path / "first", train=30, val=6, captions=lambda n: captions_of(n, 1))
    options = {
        **{f"model.{name}": value for name, value in NO_DROPOUT.items()},
        **{"model.hidden_size": 64, "model.embedding_size": 64, "model.trainable_layers": 1},
        **{"train.epochs": 50, "train.lr": 0.01, "train.patience": 0},
    }
    assert train(first, tmp_path / "start", *typed(options)) == 0
    few = write_set(tmp_path / "few", train=300, val=30, captions=lambda n: captions_of(n, 5))
    command = ("train", "--config", "few_images", "--init-from", tmp_path / "start", "--output", tmp_path / "run")
    more = ("--data.workers", 0, "--trainer.accelerator", "cpu")
    code, _, err = cli(*command, *few.options(), *more)
    assert code == 0, err
    model = Captioner.load(tmp_path / "run")
    said = model.caption(sorted(few.images("val").iterdir()))
    named = [colors for colors, caption in zip(SHADES, said, strict=True) if set(colors) <= set(caption.split())]
    assert len(set(said)) >= 20, said  # one at a rate of 1; 6 if they named the square's colour alone
    assert len(named) >= 20, said
    assert "there" in model.vocabulary.words
