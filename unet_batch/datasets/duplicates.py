"""Find pictures that are nearly the same, such as two shots of a burst, by small fingerprints of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from unet_batch.types import Pixels

NEAR = 3
"""Bits of 64 in which the difference hashes of near duplicates may differ."""
# Levels by which 9 x 8 copies of near duplicates differ at most. By their hashes alone, 461 pairs of photos
# of different cars in Carvana's studio would count; their copies differ by 17 and more.
_ALIKE = 12
_PART = 11  # bits of a hash in one of six parts
_NEIGHBOURS = 64  # bounds the comparisons where thousands of pictures have one hash, as flat ones do


class Fingerprint(NamedTuple):
    """What two pictures are compared by.

    Attributes:
        hash: 64 bits, whether each of 8 x 8 grey levels is above its left neighbour.
        thumbnail: RGB uint8 (8, 9, 3), as bytes.
    """

    hash: int
    thumbnail: bytes


def fingerprint(picture: Pixels) -> Fingerprint:
    """Compute the fingerprint of a picture, RGB uint8 (height, width, 3)."""
    small = cv2.resize(picture, (9, 8), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    rises = grey[:, 1:] > grey[:, :-1]
    return Fingerprint(int.from_bytes(np.packbits(rises).tobytes(), "big"), small.tobytes())


def near_duplicates(prints: Sequence[Fingerprint], sides: Sequence[str]) -> list[list[int]]:
    """Cluster pictures of different sides whose hashes differ in up to NEAR bits and whose copies are alike.

    Of six parts of two such hashes at least three are the same. So for each choice of three, hashes are
    sorted by these 32 bits, and only neighbours that share them are compared: about n log n, where all
    against all would be n².

    Args:
        prints: of the pictures.
        sides: of each picture, its part of a split or its group: two of one side are not compared.

    Returns:
        Clusters of at least two, as places in `prints`.
    """
    if not prints:
        return []
    hashes = np.array([each.hash for each in prints], np.uint64)
    thumbnails = np.frombuffer(b"".join(each.thumbnail for each in prints), np.uint8).reshape(len(prints), -1)
    side = np.unique(np.array(sides, object), return_inverse=True)[1]
    parent = list(range(len(prints)))  # a forest: a cluster is a tree, named by its root

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    parts = [((1 << min(_PART, 64 - at)) - 1) << at for at in range(0, 64, _PART)]
    for chosen in itertools.combinations(parts, len(parts) - NEAR):
        key = hashes & np.uint64(sum(chosen))
        order = np.argsort(key, kind="stable")
        key, first = key[order], np.arange(len(key))
        for step in range(1, _NEIGHBOURS + 1):
            first = first[first + step < len(key)]
            first = first[key[first] == key[first + step]]
            one, other = order[first], order[first + step]
            differing = (hashes[one] ^ hashes[other]).view(np.uint8).reshape(-1, 8)
            bits = np.unpackbits(differing, axis=1).sum(axis=1)
            close = (bits <= NEAR) & (side[one] != side[other])
            one, other = one[close], other[close]
            distance = np.abs(thumbnails[one].astype(np.int16) - thumbnails[other]).max(axis=1, initial=0)
            alike = distance <= _ALIKE
            for left, right in zip(one[alike].tolist(), other[alike].tolist(), strict=True):
                parent[max(root(left), root(right))] = min(root(left), root(right))
    clusters: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(prints)):
        clusters[root(index)].append(index)
    return [cluster for cluster in clusters.values() if len(cluster) > 1]
