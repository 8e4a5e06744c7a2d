"""Perceptual hashes of tiles in all eight orientations, and an index that finds those that are near each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.audit.measure import SIDE

KEPT = 8
_FREQUENCIES = np.arange(1, KEPT + 1)
_DCT = np.sqrt(2 / SIDE) * np.cos(np.pi * np.outer(_FREQUENCIES, 2 * np.arange(SIDE) + 1) / (2 * SIDE))
_SIGNS = (-1.0) ** _FREQUENCIES
"""What mirroring does to the coefficients: those of odd frequencies change sign."""
BANDS, BITS = 4, 16
REACH = 2 * BANDS - 1
"""Hashes that differ in at most so many bits are found: in one of four bands they differ in one bit at most."""
BLOCK = 4096
"""Thumbnails that are transformed at a time: as floating-point numbers they take eight times the room."""
CROWD = 4096
"""A hash that shares a band with more tiles than this says nothing of them."""
MOST = 1_000_000
"""Pairs after which the search ends: so many copies are no longer read one by one."""

Hashes = NDArray[np.uint64]


class Orientation(NamedTuple):
    """One of the eight ways to lay a square tile down: transposed or not, then mirrored."""

    name: str
    transposed: bool
    upside_down: bool
    left_right: bool

    def of(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture (H, W) laid down this way."""
        turned = picture.T if self.transposed else picture
        return turned[:: -1 if self.upside_down else 1, :: -1 if self.left_right else 1]

    def of_frequencies(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same, of the cosine coefficients (N, 8, 8) of pictures."""
        turned = coefficients.transpose(0, 2, 1) if self.transposed else coefficients
        rows = _SIGNS[:, None] if self.upside_down else 1.0
        return turned * rows * (_SIGNS if self.left_right else 1.0)


ORIENTATIONS = (
    Orientation("as it is", False, False, False),
    Orientation("mirrored left to right", False, False, True),
    Orientation("mirrored upside down", False, True, False),
    Orientation("turned by 180°", False, True, True),
    Orientation("turned by 90° to the left", True, True, False),
    Orientation("turned by 90° to the right", True, False, True),
    Orientation("mirrored at the diagonal", True, False, False),
    Orientation("mirrored at the other diagonal", True, True, True),
)
"""The symmetries of the square; the first is the identity."""


def oriented_hashes(thumbnails: NDArray[np.uint8]) -> Hashes:
    """(8, N) the hash of each thumbnail (N, 32, 32) in each orientation; the first row is `trainer.tiles.phash`'s."""
    starts = range(0, max(len(thumbnails), 1), BLOCK)
    return np.concatenate([_oriented(thumbnails[start : start + BLOCK]) for start in starts], axis=1)


def _oriented(thumbnails: NDArray[np.uint8]) -> Hashes:
    coefficients = np.einsum("ui,nij,vj->nuv", _DCT, thumbnails.astype(np.float64), _DCT, optimize=True)
    return np.stack([_hash(orientation.of_frequencies(coefficients)) for orientation in ORIENTATIONS])


def _hash(coefficients: NDArray[np.float64]) -> Hashes:
    flat = coefficients.reshape(len(coefficients), -1).round(6)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


class Near(NamedTuple):
    """Pairs whose hashes are near: `first < second`, and the first laid down by `orientation` looks like the second."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    orientation: NDArray[np.int64]
    distance: NDArray[np.int64]
    """Bits in which the hashes differ."""
    crowded: int
    """Tiles that could not be compared with all others: too many are alike."""
    ended: bool
    """Whether the search ended at `MOST` pairs."""


def near_hashes(hashes: Hashes) -> Near:
    """Pairs of tiles whose hashes differ in at most `REACH` bits in some orientation, each pair in its nearest one.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): hashes of 64 bits that differ in at most 7 agree but
    for one bit in one of four bands of 16, so only tiles that share such a band are compared.

    Args:
        hashes: (8, N) as of `oriented_hashes`.
    """
    found: list[NDArray[np.int64]] = []
    pairs = 0
    crowded = np.zeros(hashes.shape[1], dtype=bool)
    indices = [_Band(hashes[0], band) for band in range(BANDS)]
    for number, turned in enumerate(hashes):
        ours = [index.sharing(turned, crowded) for index in indices]
        near = np.unique(np.concatenate([_near(*pair, turned, hashes[0]) for part in ours for pair in part]), axis=0)
        found.append(np.insert(near, 2, number, axis=1))
        pairs += len(near)
        if pairs > MOST:
            break
    every = np.concatenate(found)
    every = every[np.lexsort((every[:, 2], every[:, 3], every[:, 1], every[:, 0]))]
    is_nearest = np.ones(len(every), dtype=bool)
    is_nearest[1:] = (every[1:, :2] != every[:-1, :2]).any(axis=1)
    first, second, orientation, distance = every[is_nearest].T
    return Near(first, second, orientation, distance, int(crowded.sum()), pairs > MOST)


def _near(first: NDArray[np.int64], second: NDArray[np.int64], turned: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """(n, 3) those of some pairs that are near, and how near."""
    distance = np.bitwise_count(turned[first] ^ hashes[second]).astype(np.int64)
    chosen = (first < second) & (distance <= REACH)
    return np.stack([first[chosen], second[chosen], distance[chosen]], axis=1)


class _Band:
    """Sixteen bits of each hash, sorted, so that the tiles of any value are a slice."""

    def __init__(self, hashes: Hashes, band: int) -> None:
        self.shift = np.uint64(band * BITS)
        keys = self._keys(hashes)
        self.order = np.argsort(keys, kind="stable")
        self.starts = np.append(0, np.cumsum(np.bincount(keys, minlength=1 << BITS)))

    def _keys(self, hashes: Hashes) -> NDArray[np.int64]:
        return ((hashes >> self.shift) & np.uint64((1 << BITS) - 1)).astype(np.int64)

    def sharing(
        self, hashes: Hashes, crowded: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs (place in `hashes`, place in the index) that agree in this band but for one bit at most.

        Marks the tiles in `crowded` of which there would be too many.
        """
        keys = self._keys(hashes)
        for flipped in (0, *(1 << bit for bit in range(BITS))):
            wanted = keys ^ flipped
            start = self.starts[wanted]
            count = self.starts[wanted + 1] - start
            crowded |= count > CROWD
            count[count > CROWD] = 0
            for part in np.array_split(np.arange(len(keys)), 1 + int(count.sum()) // MOST):
                yield self._pairs(part, start[part], count[part])

    def _pairs(
        self, places: NDArray[np.int64], start: NDArray[np.int64], count: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before = np.cumsum(count) - count
        within = np.arange(int(count.sum())) + np.repeat(start - before, count)
        return np.repeat(places, count), self.order[within]
