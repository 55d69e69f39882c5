"""``captioner train --check``: a few batches of everything, and what the whole training will take."""

import re

import pytest
from helpers import arguments, is_one_line

from captioner.training.checks import duration


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


TRAINED = ("--model.trainable_layers", 1)
SLOW = [TRAINED, (*TRAINED, "--data.augment"), ("--data.horizontal_flip",), ("--trainer.accumulate_grad_batches", 4)]


@pytest.mark.parametrize(
    "options",
    [(), *(pytest.param(options, marks=pytest.mark.slow) for options in SLOW)],
    ids=str,
)
def test_nothing_is_left_behind(tiny, tmp_path, cli, options):
    before = files(tiny.folder)
    cache = ("--data.feature_cache", tmp_path / "features")
    code, out, err = cli(*arguments(tiny, tmp_path / "run", "--check", *cache, *options))
    assert (code, err) == (0, "")
    assert files(tiny.folder) == before
    assert list(tmp_path.iterdir()) == []
    assert re.search(r"^training: [\d,]+ ms a batch, \d+ batches an epoch: ", out, re.M)
    assert re.search(r"^in all: .* for 2 epochs,", out, re.M)
    assert re.search(r"^memory: peak of [\d.]+ [MG]B", out, re.M)
    assert ("still to compute" in out) == ("--data.augment" not in options)


def test_features_that_are_there_are_used(tiny, run, tmp_path, cli):
    code, out, _ = cli(*arguments(tiny, tmp_path / "again", "--check"))
    assert code == 0
    assert "still to compute" not in out


def test_a_run_in_the_folder_is_not_touched(tiny, run, cli):
    before = files(run)
    assert cli(*arguments(tiny, run, "--check"))[0] == 0
    assert files(run) == before
    code, _, err = cli(*arguments(tiny, run, "--check", "--resume"))
    assert code == 2
    assert is_one_line(err, "--check", "--resume")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (9.99, "10.0 s"), (59.6, "60 s"), (3599, "59 min 59 s"), (3600, "1 h"), (86399, "24 h")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
