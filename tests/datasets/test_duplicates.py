"""Near pairs of hashes: all that comparing each with each finds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captioner.datasets.duplicates import group_duplicates, near_pairs


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 16), st.data())
def test_near_pairs_are_those_of_comparing_each_with_each(hashes, distance, data):
    for one in hashes[:6]:  # some that are near
        for bit in data.draw(st.lists(st.integers(0, 63), max_size=3)):
            one ^= 1 << bit
        hashes.append(one)
    wanted = [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= distance
    ]
    assert near_pairs(np.array(hashes, dtype=np.uint64), distance).tolist() == wanted


def test_groups_need_equal_bytes_or_near_hashes_and_similar_colours():
    hashes = np.array([0, 0, 1, 2**63, 0], dtype=np.uint64)
    colours = np.array([10, 200, 12, 90, 11], dtype=np.uint8)[:, None]
    digests = [b"a", b"b", b"c", b"b", b"d"]
    assert group_duplicates(digests, hashes, colours, 0) == [[0, 4], [1, 3]]
    assert group_duplicates(digests, hashes, colours, 1) == [[0, 2, 4], [1, 3]]
    assert group_duplicates([b"a"], hashes[:1], colours[:1], 4) == []
