"""The mean of the weights before and after a training: its share is the largest that loses nothing."""

import re

import numpy as np
import pytest
import torch
from helpers import arguments, make_captioner

from captioner import metrics
from captioner.data.annotations import read_examples
from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references
from captioner.models.captioner import Captioner
from captioner.training.start_weight import SHARES, largest_share, mix


def test_mix():
    start, trained = {"a": torch.zeros(2), "n": torch.tensor(3)}, {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)}
    found = mix(start, trained, 0.75)
    assert found["a"].tolist() == [0.25, 0.5]
    assert found["n"] == 4
    assert torch.equal(mix(start, trained, 0.0)["a"], trained["a"])


NOISE = np.random.default_rng(0).normal(0, 30, (2, 100))
OTHER = NOISE[1] - NOISE[1].mean() + NOISE[0].mean()


@pytest.mark.parametrize(
    ("ciders", "chosen"),
    [
        ({0.85: NOISE[0], 0.5: NOISE[0], 0.0: NOISE[0]}, 0.85),  # nothing gained
        ({0.85: NOISE[0], 0.5: NOISE[0] + 1, 0.0: NOISE[0] + 9}, 0.0),  # the same gain on every image
        ({0.85: NOISE[0], 0.0: OTHER + 3}, 0.85),  # within the noise of 100 images
        ({0.85: NOISE[0], 0.0: OTHER + 20}, 0.0),
        ({0.85: NOISE[0] - 20, 0.5: NOISE[0], 0.0: NOISE[0] - 50}, 0.5),
        ({0.85: np.array([1.0]), 0.0: np.array([2.0])}, 0.0),  # a single image
        ({0.85: np.array([2.0]), 0.0: np.array([2.0])}, 0.85),
    ],
)
def test_largest_share(ciders, chosen):
    assert largest_share(ciders) == chosen


def test_auto_saves_the_share_that_it_prints(tiny, tmp_path, cli):
    """The model's captions have the val_cider that was printed for its share, also after a resumption."""
    make_captioner().save(tmp_path / "start.safetensors", half=False)
    options = ("--init-from", tmp_path / "start.safetensors", "--train.start_weight", "auto")
    command = arguments(tiny, tmp_path / "run", *options)
    for resume in ((), ("train", "--resume", "--output", tmp_path / "run", "--train.epochs", 3)):
        code, said, err = cli(*(resume or command))
        assert code == 0, err
        (line,) = [line for line in said.splitlines() if line.startswith("start_weight")]
        share, scores = re.fullmatch(r"start_weight (\S+), .* val_cider (.*)", line).groups()
        printed = {float(each): float(cider) for cider, each in re.findall(r"([\d.]+) with ([\d.]+)", scores)}
        assert tuple(printed) == SHARES
        model = Captioner.load(tmp_path / "run")
        examples, _ = read_examples(tiny.annotations("val"), tiny.images("val"))
        found = model.caption([example.path for example in examples], beam=2, max_length=8)
        references = tokenize_references([example.captions for example in examples], "ptb")
        cider = 100 * metrics.cider_d(references, TOKENIZERS["ptb"](found)).mean()
        assert cider == pytest.approx(printed[float(share)], abs=0.01)
