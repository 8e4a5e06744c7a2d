"""The standard error of a score, over tiles, or over the slides or patients that they are from."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def recall_influences(right: NDArray[np.bool_], labels: Indices) -> Floats:
    """How much each tile moves the mean recall over the classes that have tiles: balanced accuracy.

    Args:
        right: (N,) whether a tile is classified right.
        labels: (N,) class indices.
    """
    tiles = np.bincount(labels)
    recalls = np.bincount(labels, weights=right) / np.maximum(tiles, 1)
    influences: Floats = (right - recalls[labels]) / (tiles[labels] * np.count_nonzero(tiles))
    return influences


def standard_error(influences: Floats, groups: Indices | None = None) -> float:
    """The standard error of a score by Taylor linearisation, as for a survey (Binder, International Statistical Review
    51, 1983): that of the sum of its first-order dependence on each tile.

    With `groups` the tiles of a group count as one observation, so no tile of a slide is taken for news that it is not;
    but the error is never below that of as many independent tiles: by chance alike slides are no proof that tiles of
    one slide differ more than others. A single group tells nothing of groups, and leaves the error over tiles.

    Args:
        influences: (N,) how much each tile moves the score; their sum is 0.
        groups: (N,) indices of slides or patients; None: every tile stands for itself.
    """
    variance = _variance_of_sum(influences)
    if groups is not None and (units := count_groups(groups)) > 1:
        variance = max(variance, _variance_of_sum(_sums(influences, groups), units))
    return math.sqrt(variance)


def count_groups(groups: Indices) -> int:
    """How many groups there are; not all indices need occur."""
    return int(np.count_nonzero(np.bincount(groups)))


def _sums(parts: Floats, groups: Indices) -> Floats:
    return np.asarray(np.bincount(groups, weights=parts), dtype=np.float64)


def _variance_of_sum(parts: Floats, count: int | None = None) -> float:
    """Variance of a sum of independent parts whose mean is 0; of `count` of them, if some are only 0."""
    count = count or len(parts)
    return float(count / max(1, count - 1) * np.square(parts).sum())
