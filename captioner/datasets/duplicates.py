"""Duplicate images: equal files, or nearly equal perceptual hashes and colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

BITS = 64  # of a perceptual hash
MAX_COLOUR_DIFFERENCE = 16.0  # mean over the values 0..255 of two thumbnails, above which they are no duplicates
CHUNK = 1 << 20  # pairs compared at a time


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of hashes that differ in at most `distance` bits.

    The bits are cut into distance + 1 bands. A near pair agrees in at least one band, so only pairs that do are
    compared (multi-index hashing, Norouzi et al. 2012). `hashes` is (N,) uint64, `distance` 0..BITS − 1.

    Returns:
        (P, 2) int64 indices, the smaller one first, sorted, each pair once.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        for pairs in _equal_pairs(band):
            differ = (hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).view(np.uint8).reshape(-1, BITS // 8)
            found.append(pairs[np.unpackbits(differ, axis=1).sum(axis=1) <= distance])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _equal_pairs(keys: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of indices of equal keys, about CHUNK at a time: (P, 2).

    Of sorted keys, step 1 finds the equal neighbours, step 2 those two places apart and so on:
    a a a b → (0, 1), (1, 2); then (0, 2); at step 3 no key has an equal and the search ends.
    """
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start, waiting, count = np.arange(len(keys)), [], 0
    for step in range(1, len(keys)):
        start = start[start + step < len(keys)]
        start = start[keys[start] == keys[start + step]]  # a key without an equal at this step has none at larger steps
        if not len(start):
            break
        waiting.append(np.stack([order[start], order[start + step]], axis=1))
        count += len(start)
        if count >= CHUNK:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def group_duplicates(
    digests: Sequence[bytes], hashes: np.ndarray, colours: np.ndarray, distance: int
) -> list[list[int]]:
    """Groups of duplicates: images connected by equal files, or by near hashes and similar colours.

    Args:
        digests: (N,) of the bytes of the files; N is at least 1.
        hashes: (N,) uint64 perceptual hashes, which ignore colours.
        colours: (N, …) uint8 thumbnails.
        distance: the hashes of duplicates differ in at most this many bits.

    Returns:
        Indices of images, two or more per group, in order; the groups in the order of their first image.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(digests)
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)
    kept = np.unique(same)  # of equal files only the first is compared
    pairs = kept[near_pairs(hashes[kept], distance)]
    flat = colours.reshape(total, -1)
    similar = [
        np.abs(flat[part[:, 0]].astype(np.int16) - flat[part[:, 1]]).mean(axis=1) <= MAX_COLOUR_DIFFERENCE
        for part in np.array_split(pairs, len(pairs) // 100_000 + 1)
    ]
    edges = np.concatenate([np.stack([same, np.arange(total)], axis=1), pairs[np.concatenate(similar)]])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(total, total))
    _, label = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for i, group in enumerate(label.tolist()):
        members.setdefault(group, []).append(i)
    return [group for group in members.values() if len(group) > 1]
