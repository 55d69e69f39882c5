"""Duplicate images: equal files, or nearly equal perceptual hashes and colours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

BITS = 64  # of a perceptual hash
MAX_COLOUR_DIFFERENCE = 16.0  # mean over the values 0..255 of two thumbnails, above which they are no duplicates


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """(P, 2) int64 indices of all pairs of hashes, (N,) uint64, that differ in at most `distance` bits, sorted.

    The bits are cut into distance + 1 bands. A near pair agrees in at least one band, so only pairs that do are
    compared (multi-index hashing, Norouzi et al. 2012). Of the sorted bands, step 1 finds the equal neighbours, step 2
    those two places apart and so on: a a a b → (0, 1), (1, 2); then (0, 2); no band has an equal three places apart.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(band, kind="stable")
        band, start, step = band[order], np.arange(len(band)), 0
        while len(start):
            step += 1
            start = start[start + step < len(band)]
            start = start[band[start] == band[start + step]]  # a band without an equal here has none at larger steps
            pairs = np.stack([order[start], order[start + step]], axis=1)
            differ = (hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).view(np.uint8).reshape(-1, BITS // 8)
            found.append(pairs[np.unpackbits(differ, axis=1).sum(axis=1) <= distance])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def group_duplicates(
    digests: Sequence[bytes], hashes: np.ndarray, colours: np.ndarray, distance: int
) -> list[list[int]]:
    """Groups of two or more indices of images connected by equal files, or by near hashes and similar colours.

    The N ≥ 1 images have `digests` of the bytes of their files, perceptual `hashes`, (N,) uint64, which ignore colours,
    and thumbnails, `colours`, (N, …) uint8. Groups and images are in the order of the arguments.

    Images of equal hashes are compared with a few of them alone, their leaders: of thousands of equal frames with one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(digests)
    _, kept, same = np.unique(np.array(digests), return_index=True, return_inverse=True)
    flat = colours.reshape(total, -1)
    different, of_hash = np.unique(hashes[kept], return_inverse=True)  # of equal files only the first is compared
    members = [
        kept[part] for part in np.split(np.argsort(of_hash, kind="stable"), np.cumsum(np.bincount(of_hash))[:-1])
    ]
    leaders, found = [], [np.stack([kept[same], np.arange(total)], axis=1)]
    for each in members:
        leaders.append(_leaders(flat, each))
        found += [_similar(flat, leader, each) for leader in leaders[-1]]
    for a, b in near_pairs(different, distance).tolist():
        found += [_similar(flat, leader, members[b]) for leader in leaders[a]]
        found += [_similar(flat, leader, members[a]) for leader in leaders[b]]
    edges = np.concatenate(found)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(total, total))
    _, label = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for i, group in enumerate(label.tolist()):
        groups.setdefault(group, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _similar(flat: np.ndarray, leader: int, members: np.ndarray) -> np.ndarray:
    """(P, 2) pairs of `leader` and those of `members` with similar colours."""
    difference = np.abs(flat[members].astype(np.int16) - flat[leader]).mean(axis=1)
    near = members[difference <= MAX_COLOUR_DIFFERENCE]
    return np.stack([np.full_like(near, leader), near], axis=1)


def _leaders(flat: np.ndarray, members: np.ndarray) -> list[int]:
    """Some of `members`, so that each of them has colours similar to one of these."""
    found: list[int] = []
    while len(members):
        found.append(int(members[0]))
        members = np.setdiff1d(members, _similar(flat, found[-1], members)[:, 1], assume_unique=True)
    return found
