"""Intervals and p-values: simulations with a known true score, then brute force, then edge cases."""

import itertools
import json

import numpy as np
import pytest

from captioner.metrics import significance
from captioner.metrics.scores import NAMES, PerImage, corpus_scores, per_image
from captioner.metrics.significance import compare, intervals


def drawn(random: np.random.Generator, n: int, better: float = 0.0) -> PerImage:
    """n images of a made-up system: 11 words or so; matches, ROUGE-L and CIDEr-D rise with the image's luck."""
    luck = random.beta(2, 3, n)
    c = random.integers(8, 14, n)
    guesses = c[:, None] - np.arange(4)
    matches = random.binomial(guesses, np.clip(luck + better, 0, 1)[:, None] ** np.array([0.5, 1, 1.5, 2]))
    counts = np.column_stack([matches, guesses, c, random.integers(8, 14, n)])
    return PerImage(counts, luck + better, 10 * (luck + better))


def rows(images: PerImage, which) -> PerImage:
    return PerImage(*(values[which] for values in images))


# Simulations


def test_nineteen_intervals_of_twenty_hold_the_truth():
    population = drawn(np.random.default_rng(0), 500)
    truth = population.corpus_scores()
    random, held = np.random.default_rng(1), np.zeros(6)
    for seed in range(400):
        found = intervals(rows(population, random.integers(500, size=80)), resamples=300, seed=seed)
        held += [found[name]["low"] <= value <= found[name]["high"] for name, value in zip(NAMES, truth, strict=True)]
    share = held / 400
    assert (share >= 0.91).all()  # 0.95 less four standard errors; with 80 images it is in truth a little below 0.95
    assert (share <= 0.985).all()


def test_p_is_uniform_when_two_systems_differ_by_chance_only():
    random, found = np.random.default_rng(2), []
    for seed in range(400):
        both = drawn(random, 60), drawn(random, 60)
        result = compare(*both, resamples=1, rounds=199, seed=seed)
        found.append([result[name]["p"] for name in NAMES])
    p = np.sort(found, axis=0)  # (400, 6)
    assert p.min() >= 1 / 200
    distance = abs(p - np.arange(1, 401)[:, None] / 400).max(axis=0)
    assert (distance < 0.0815).all()  # Kolmogorov and Smirnov, 1 %


def test_a_clear_difference_has_the_smallest_p_there_is():
    random = np.random.default_rng(3)
    for found in compare(drawn(random, 200, better=0.3), drawn(random, 200), rounds=500).values():
        assert found["p"] == pytest.approx(1 / 501)
        assert 0 < found["low"] < found["difference"] < found["high"]


def test_what_both_systems_share_does_not_widen_the_interval_of_their_difference():
    random = np.random.default_rng(4)
    first = drawn(random, 200)
    second = first._replace(rouge=first.rouge - 0.01 + random.normal(0, 0.001, 200))
    paired, alone = compare(first, second)["ROUGE-L"], intervals(first)["ROUGE-L"]
    assert paired["low"] > 0.9
    assert (paired["high"] - paired["low"]) * 50 < alone["high"] - alone["low"]


def test_four_times_the_images_halve_the_interval():
    random = np.random.default_rng(5)
    few, many = (intervals(drawn(random, n)) for n in (250, 1000))
    for name in NAMES:
        widths = [found[name]["high"] - found[name]["low"] for found in (few, many)]
        assert widths[0] / widths[1] == pytest.approx(2, rel=0.25), name


# Brute force


def test_p_is_that_of_all_swaps():
    random = np.random.default_rng(6)
    a, b = drawn(random, 8, better=0.1), drawn(random, 8)
    first, second = a.table(), b.table()
    swaps = np.array(list(itertools.product([0, 1], repeat=8)))[:, :, None]  # (256, 8, 1)
    all_a, all_b = (np.where(swaps == k, first, second).sum(axis=1) for k in (0, 1))
    differences = abs(corpus_scores(all_a, 8) - corpus_scores(all_b, 8))
    exact = (differences >= differences[0] * (1 - 1e-9)).mean(axis=0)
    found = compare(a, b, rounds=20_000)
    assert [found[name]["p"] for name in NAMES] == pytest.approx(exact, abs=0.015)


def test_the_interval_is_that_of_all_draws():
    images = drawn(np.random.default_rng(7), 5)
    table = images.table()
    draws = table[np.array(list(itertools.product(range(5), repeat=5)))].sum(axis=1)  # (3125, 12)
    exact = np.quantile(corpus_scores(draws, 5), [0.025, 0.975], axis=0)
    found = intervals(images, resamples=20_000)
    for side, quantile in zip(("low", "high"), exact, strict=True):
        assert (abs([found[name][side] for name in NAMES] - quantile) < 0.05 * (exact[1] - exact[0])).all()


# Edge cases


def test_the_other_way_round():
    random = np.random.default_rng(8)
    a, b = drawn(random, 50), drawn(random, 50)
    there, back = compare(a, b), compare(b, a)
    for name in NAMES:
        assert there[name]["difference"] == pytest.approx(-back[name]["difference"])
        assert there[name]["low"] == pytest.approx(-back[name]["high"])
        assert there[name]["high"] == pytest.approx(-back[name]["low"])
        assert there[name]["p"] == back[name]["p"]


def test_identical_systems_do_not_differ():
    a = drawn(np.random.default_rng(9), 37)
    for found in compare(a, PerImage(*(values.copy() for values in a)), rounds=100).values():
        assert found.pop("first") == found.pop("second")
        assert found == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_a_difference_in_one_image_is_none():
    """Every swap leaves the difference or turns its sign: p = 1, whatever the last digits of the sums."""
    random = np.random.default_rng(10)
    for n in range(3, 40):
        a = drawn(random, n)
        b = PerImage(*(values.copy() for values in a))
        b.counts[1, :4], b.rouge[1], b.cider[1] = 0, random.random(), random.random()
        assert {found["p"] for found in compare(a, b, resamples=1, rounds=100).values()} == {1.0}


def test_one_image_has_an_interval_without_width():
    images = drawn(np.random.default_rng(11), 1)
    score = images.corpus_scores()
    found = intervals(images, resamples=10)
    assert [found[name]["low"] for name in NAMES] == [found[name]["high"] for name in NAMES] == pytest.approx(score)


def test_the_seed_decides():
    random = np.random.default_rng(12)
    a, b = drawn(random, 40), drawn(random, 40)
    assert intervals(a, seed=1) == intervals(a, seed=1) != intervals(a, seed=2)
    assert compare(a, b, seed=1) == compare(a, b, seed=1) != compare(a, b, seed=2)


def test_the_number_of_draws_at_a_time_does_not_matter(monkeypatch):
    random = np.random.default_rng(13)
    a, b = drawn(random, 32), drawn(random, 32)
    expected = compare(a, b, resamples=100, rounds=100)
    monkeypatch.setattr(significance, "MAX_DRAWS", 7 * 32)
    for name, found in compare(a, b, resamples=100, rounds=100).items():
        assert found == pytest.approx(expected[name])


def test_captions_scored_and_compared():
    references = [[f"a w{i} dog runs on w{i} grass".split(), f"the w{i} dog".split()] for i in range(30)]
    good, bad = [refs[0][:6] for refs in references], [refs[0][1:3] for refs in references]
    a, b = per_image(references, good), per_image(references, bad)
    ranges = intervals(a)
    assert list(ranges) == list(NAMES)
    for name, value in zip(NAMES, a.corpus_scores(), strict=True):
        assert ranges[name]["low"] <= value + 1e-9
        assert ranges[name]["high"] >= value - 1e-9
    found = compare(a, b)
    assert found["CIDEr"]["difference"] == pytest.approx(100 * (a.cider.mean() - b.cider.mean()))
    assert json.loads(json.dumps([ranges, found])) == [ranges, found]


def test_systems_on_other_images_are_an_error():
    random = np.random.default_rng(14)
    with pytest.raises(ValueError, match="3 and 4 images"):
        compare(drawn(random, 3), drawn(random, 4))
