"""The places of the words to predict: the example of the docstring, and what they have to be for any mask."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, UNK


def test_the_example():
    layout = Layout.of(np.array([[True, True, False], [True, True, True]]))
    assert layout.targets.tolist() == [0, 1, 3, 4, 5]
    assert layout.order.tolist() == [1, 0]
    assert layout.sizes == [2, 2, 1]
    assert layout.steps.tolist() == [3, 0, 4, 1, 5]
    assert layout.rows.tolist() == [1, 3, 0, 2, 4]


def test_words_but_padding_and_unknown_ones_are_predicted():
    words = np.array([[START, 7, UNK, END, PAD], [START, END, PAD, PAD, PAD]])
    layout = Layout.of_words(words)
    assert words[:, 1:].flatten()[layout.targets].tolist() == [7, END, END]
    assert layout.sizes == [2, 1, 1]  # the unknown word is an input all the same


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6))))
def test_any_mask(real):
    layout = Layout.of(real)
    assert np.array_equal(np.flatnonzero(real), layout.targets)
    assert torch.equal(layout.steps[layout.rows], layout.targets)
    lengths = [max((t + 1 for t in range(real.shape[1]) if row[t]), default=0) for row in real]
    assert sorted(layout.order.tolist()) == list(range(len(real)))
    assert [lengths[n] for n in layout.order] == sorted(lengths, reverse=True)
    step = 0
    for t, (size, part) in enumerate(zip(layout.sizes, layout.steps.split(layout.sizes), strict=True)):
        assert size == sum(length > t for length in lengths) > 0
        assert part.tolist() == (layout.order[:size] * real.shape[1] + t).tolist()
        step += size
    assert step == sum(lengths)
