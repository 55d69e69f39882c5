"""The confidence of captions: its fit, where it applies, and how it is stored."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import make_captioner, refused

from captioner.config import SearchConfig
from captioner.data.dataset import load_batch
from captioner.models.captioner import Captioner, Ensemble
from captioner.models.checkpoint import read_checkpoint, save_slim
from captioner.models.confidence import Calibration, cross_validated, fit, parse

SEARCH = SearchConfig(beam=3, max_length=6)
CALIBRATION = Calibration(2.0, 3.0, 40.0, 500, asdict(SEARCH))


@pytest.fixture
def calibrated(weights):
    model = make_captioner()
    model.calibration = CALIBRATION
    return model


def drawn(n, intercept=3.0, slope=5.0):
    random = np.random.default_rng(0)
    perplexities = np.exp(random.gamma(4, 0.15, n))
    return perplexities, random.random(n) < 1 / (1 + perplexities**slope / math.exp(intercept))


def test_the_fit_finds_the_coefficients():
    found = fit(*drawn(20_000), 40, SEARCH)
    assert (found.intercept, found.slope) == pytest.approx((3, 5), rel=0.1)
    assert (found.cider, found.images, found.search) == (40, 20_000, asdict(SEARCH))


def test_the_confidence_falls_from_1_to_0():
    found = [CALIBRATION.confidence(each) for each in (1, 1.5, 2, 4, 100, 1e300)]
    assert found == sorted(found, reverse=True)
    assert 0 <= found[-1] < 1e-6 < found[2] < found[0] < 1
    assert CALIBRATION.confidence(math.exp(2 / 3)) == pytest.approx(0.5)


def test_captions_that_are_right_without_exception_at_low_perplexities():
    found = fit([1.1, 1.2, 1.3, 3, 4, 5], [True] * 3 + [False] * 3, 40, SEARCH)
    assert math.isfinite(found.slope)
    assert found.confidence(1.2) > 0.9 > 0.1 > found.confidence(4)


def test_perplexities_that_say_nothing_are_refused():
    refused(fit, [1.1, 1.2, 3, 4], [False, False, True, True], 40, SEARCH, says=["perplexity", "more images"])


def test_each_caption_is_predicted_by_the_others():
    perplexities, right = drawn(400)
    found = cross_validated(perplexities, right, fit(perplexities, right, 40, SEARCH))
    flipped = right.copy()
    flipped[7] = not flipped[7]
    assert cross_validated(perplexities, flipped, CALIBRATION)[7] == found[7]
    assert np.corrcoef(found, right)[0, 1] > 0.2


@pytest.mark.parametrize(
    "change",
    [{"beam": 2}, {"length_penalty": 0.0}, {"max_length": 5}, {"sample": True}, {"must_not": "red"}],
    ids=lambda change: next(iter(change)),
)
def test_another_search_has_no_confidence(calibrated, images, change):
    x, other = load_batch(images[:2], 32)[0], replace(SEARCH, **change)
    assert all(found[0].confidence is None for found in calibrated.search(x, other))
    (name,) = change
    assert name in CALIBRATION.differences(other)[0]


def test_the_best_caption_has_a_confidence(calibrated, images):
    x = load_batch(images, 32)[0]
    for config in (SEARCH, replace(SEARCH, n_best=3)):
        for best, *others in calibrated.search(x, config):
            assert best.confidence == CALIBRATION.confidence(best.perplexity)
            assert best.unsure == (best.confidence < 0.5)
            assert best.as_dict()["confidence"] == best.confidence
            assert all(each.confidence is None and not each.unsure for each in others)
            assert all("confidence" not in each.as_dict() for each in others)
    assert {each.unsure for each, *_ in calibrated.search(x, SEARCH)} <= {True, False}


def test_an_ensemble_has_none(calibrated, images):
    both = Ensemble([calibrated, make_captioner()], ["a", "b"])
    assert both.search(load_batch(images[:1], 32)[0], SEARCH)[0][0].confidence is None


def test_it_is_stored_with_the_model(calibrated, tmp_path):
    calibrated.save(tmp_path / "model.safetensors")
    assert Captioner.load(tmp_path / "model.safetensors").calibration == CALIBRATION
    make_captioner().save(tmp_path / "plain.safetensors")
    assert Captioner.load(tmp_path / "plain.safetensors").calibration is None
    assert "calibration" not in read_checkpoint(tmp_path / "plain.safetensors")[0]


@pytest.mark.parametrize(
    "change",
    [
        {"slope": -1.0},
        {"slope": 0},
        {"intercept": float("nan")},
        {"intercept": "3"},
        {"cider": float("inf")},
        {"images": True},
        {"search": []},
        {"more": 1},
    ],
    ids=str,
)
def test_an_invalid_one_is_refused(change):
    refused(parse, "x.safetensors", {**asdict(CALIBRATION), **change}, says=["x.safetensors", "calibration"])


@pytest.mark.parametrize("value", [3, "text", [], {}, {"slope": 1.0}], ids=str)
def test_something_else_is_refused(value, calibrated, tmp_path):
    refused(parse, "x.safetensors", value, says=["x.safetensors", "calibration"])
    file = tmp_path / "model.safetensors"
    save_slim(file, {**calibrated.header(), "calibration": value}, calibrated.weights())
    refused(Captioner.load, file, says=[str(file), "calibration"])
