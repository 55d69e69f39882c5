"""Rewards equal the metrics with END as a word and the document frequencies of the training references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import metrics
from captioner.training.rewards import Rewards

END = 2
captions = st.lists(st.integers(4, 9), max_size=7)
corpora = st.lists(st.tuples(st.lists(captions, min_size=1, max_size=5), captions), min_size=1, max_size=8)


def reward(rewards: Rewards, images, hypotheses, ended=None) -> np.ndarray:
    """Of captions without END, all of which ended unless said otherwise."""
    ended = np.ones(len(hypotheses), dtype=int) if ended is None else np.asarray(ended)
    words = np.full((len(hypotheses), max(map(len, hypotheses)) + 1), END)
    for row, caption in zip(words, hypotheses, strict=True):
        row[: len(caption)] = caption
    return rewards(np.asarray(images), words, np.array([len(caption) for caption in hypotheses]) + ended)


@given(corpora, st.sampled_from([0.0, 0.7]))
def test_equal_to_the_metrics_with_end_as_a_word(corpus, weight):
    references, hypotheses = map(list, zip(*corpus, strict=True))
    found = reward(Rewards(references, END, weight), range(len(corpus)), hypotheses)
    references = [[[*words, END] for words in refs] for refs in references]
    hypotheses = [[*words, END] for words in hypotheses]
    bleu = metrics.bleu_from_counts(metrics.bleu_counts(references, hypotheses))[:, -1]
    assert np.allclose(found, metrics.cider_d(references, hypotheses) + weight * bleu, rtol=1e-9, atol=1e-12)


REFERENCES = [[[4, 5, 6], [4, 5, 7, 8]], [[9, 5, 6, 10]], [[11, 12], [11, 12, 5], [13]]]


def test_captions_of_any_images_in_any_order():
    """The reward of a caption does not depend on the others, and an image may have many."""
    rewards = Rewards(REFERENCES, END, 0.5)
    images = [2, 0, 0, 1, 2, 0]
    hypotheses = [[11, 12], [4, 5, 6], [4, 5], [5, 6, 10], [4, 5, 6], []]
    together = reward(rewards, images, hypotheses)
    alone = [reward(rewards, [p], [h])[0] for p, h in zip(images, hypotheses, strict=True)]
    assert np.allclose(together, alone)
    assert together[1] > together[2] > together[5]
    assert together[0] > together[4]


def test_the_frequencies_are_those_of_all_training_references():
    """A word that all images have gives no reward, one that only this image has gives most."""
    references = [[[4, 5]], [[4, 6]], [[4, 7]], [[4, 6]]]
    rewards = Rewards(references, 2)
    values = [reward(rewards, [1], [caption], [0])[0] for caption in ([4], [6], [4, 6])]
    assert values[0] == 0 < values[1] < values[2]


def test_words_no_reference_has_count_against_a_caption():
    rewards = Rewards(REFERENCES, END)
    assert reward(rewards, [0], [[4, 5, 6]])[0] > reward(rewards, [0], [[4, 5, 6, 99]])[0] > 0
    assert reward(rewards, [0], [[98, 99, 97, 96]], [0])[0] == 0


def test_stopping_where_no_reference_stops_costs():
    """ "a dog on a" has words of the reference in their order; END in the wrong place is a wrong word."""
    rewards = Rewards([[[4, 5, 6, 4, 7]], [[8, 9]], [[9, 10]]], END)
    ended, cut = (reward(rewards, [0], [[4, 5, 6, 4]], [e])[0] for e in (1, 0))
    assert ended < cut
    assert reward(rewards, [0], [[4, 5, 6, 4, 7]], [1])[0] > reward(rewards, [0], [[4, 5, 6, 4, 7]], [0])[0]


def test_words_beyond_the_length_do_not_count():
    rewards = Rewards(REFERENCES, END)
    plain = rewards(np.array([0]), np.array([[4, 5, 6, END]]), np.array([3]))
    assert rewards(np.array([0]), np.array([[4, 5, 6, 99]]), np.array([3])) == plain


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_cider_of_a_single_image_is_zero(weight):
    found = reward(Rewards([[[4, 5, 6]]], END, weight), [0], [[4, 5, 6]])
    assert found == pytest.approx(weight, abs=1e-6)
