"""The expected calibration error: by hand, of exact confidences, and of wrong ones."""

import numpy as np
import pytest

from captioner.metrics.calibration import error_of_exact, reliability, show_error, summary


def test_by_hand():
    found = reliability([0.9, 0.1, 0.8, 0.2], [True, False, False, False], bins=2)
    assert found.confidence.tolist() == pytest.approx([0.15, 0.85])
    assert found.right.tolist() == [0, 0.5]
    assert found.captions.tolist() == [2, 2]
    assert found.error == pytest.approx((2 * 0.15 + 2 * 0.35) / 4)


def test_bins_have_equal_numbers_and_few_captions_have_few_bins():
    assert reliability(np.linspace(0, 1, 23), np.ones(23)).captions.tolist() == [3, 3, 3, *[2] * 7]
    assert reliability([0.3, 0.4, 0.5], [True, False, True]).captions.tolist() == [1, 1, 1]


def test_ties_do_not_sort_by_what_is_right():
    right = np.arange(100) % 2 == 0
    assert reliability(np.full(100, 0.5), right).error == 0  # each bin has as many right as wrong captions


def test_exact_confidences_have_an_error_by_chance_that_falls_with_their_number():
    random = np.random.default_rng(1)
    few, many = random.random(200), random.random(20_000)
    assert reliability(many, random.random(20_000) < many).error < 0.015
    mean, most = error_of_exact(few)
    assert 0.03 < mean < most < 0.15
    errors = [reliability(few, random.random(200) < few).error for _ in range(200)]
    assert np.mean(errors) == pytest.approx(mean, abs=0.005)
    assert 0.88 < np.mean(np.array(errors) <= most) <= 1


def test_confidences_that_are_too_high():
    random = np.random.default_rng(2)
    sure = random.random(5000)
    found = summary(np.sqrt(sure), random.random(5000) < sure)
    assert found["ece"] == pytest.approx(2 / 3 - 1 / 2, abs=0.02)
    assert found["ece"] > 5 * found["ece_of_exact_95"]
    assert sum(one["captions"] for one in found["curve"]) == found["captions"] == 5000
    assert f"{found['ece']:.3f} of 5,000 captions" in show_error(found)
