"""Which images are the same, byte for byte or to the eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

BITS = 64  # of a perceptual hash
COLOUR = 16.0  # mean difference of two small images, 0..255, above which the same outlines are not the same image
CHUNK = 1 << 20  # pairs that are compared together


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs of hashes that differ in at most `distance` bits.

    The bits are cut into distance + 1 bands: a near pair agrees in one of them at least, so only pairs that do are
    compared (multi-index hashing, Norouzi et al. 2012), not each with each.

    Args:
        hashes: (N,) uint64.
        distance: 0..BITS - 1.

    Returns:
        (P, 2) int64, the smaller number first, sorted, each pair once.
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
    """(≤ CHUNK or so, 2) numbers of equal keys, all pairs of them in turn."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start, waiting, count = np.arange(len(keys)), [], 0
    for step in range(1, len(keys)):
        start = start[start + step < len(keys)]
        start = start[keys[start] == keys[start + step]]  # who has no equal so far away has none farther away
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
    """The sets of images that are the same: equal files, or near hashes and like colours, also from one to the next.

    Args:
        digests: (N,) of the bytes of the files.
        hashes: (N,) uint64 perceptual hashes.
        colours: (N, …) uint8, the images made very small: a hash knows no colours.
        distance: bits in which the hashes of one image may differ.

    Returns:
        Numbers of images, two or more a group, in order; the groups by their first image.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(digests)
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)
    kept = np.unique(same)  # a placeholder that comes a million times is compared once
    pairs = kept[near_pairs(hashes[kept], distance)]
    flat = colours.reshape(total, -1) if total else colours
    like = [
        np.abs(flat[part[:, 0]].astype(np.int16) - flat[part[:, 1]]).mean(axis=1) <= COLOUR
        for part in np.array_split(pairs, len(pairs) // 100_000 + 1)
    ]
    pairs = pairs[np.concatenate(like)]
    ends = np.concatenate([np.stack([same, np.arange(total)], axis=1), pairs])
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(total, total))
    _, label = connected_components(graph, directed=False) if total else (0, np.empty(0, dtype=np.int64))
    members: dict[int, list[int]] = {}
    for i, group in enumerate(label.tolist()):
        members.setdefault(group, []).append(i)
    return [group for group in members.values() if len(group) > 1]
