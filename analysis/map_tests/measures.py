"""How well a map agrees with what is in its cells.

Maps and contents are arrays of cells (..., h, w); a measure has their leading shape, and is NaN where it says nothing:
a map that is the same everywhere, or contents that are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


def rank_correlation(maps: NDArray[np.floating], contents: NDArray[np.floating]) -> Floats:
    """Spearman's rank correlation over the cells; ties have their mean rank."""
    ranks = [rankdata(_flat(cells), axis=-1) for cells in np.broadcast_arrays(maps, contents)]
    centred = [rank - rank.mean(axis=-1, keepdims=True) for rank in ranks]
    spread = np.sqrt(np.prod([np.square(rank).sum(axis=-1) for rank in centred], axis=0))
    return _ratio((centred[0] * centred[1]).sum(axis=-1), spread)


def area_auroc(maps: NDArray[np.floating], shares: NDArray[np.floating]) -> Floats:
    """The chance that a pixel of a kind lies in a hotter cell than a pixel that is not; the same heat counts half.

    It is the area under the ROC curve of a pixel's heat, that of its cell. Where cells are mixed, 1 cannot be reached:
    the most there is is `area_auroc(shares, shares)`.

    Args:
        maps: cells.
        shares: of each cell's area that is of the kind, 0 to 1.
    """
    heat, area = (_flat(cells) for cells in np.broadcast_arrays(maps, shares))
    leading = heat.shape[:-1]
    pairs = zip(heat.reshape(-1, heat.shape[-1]), area.reshape(-1, area.shape[-1]), strict=True)
    return np.array([_auroc(*pair) for pair in pairs], dtype=np.float64).reshape(leading)


def _auroc(heat: Floats, area: Floats) -> float:
    levels, place = np.unique(heat, return_inverse=True)
    inside = np.bincount(place, weights=area)
    outside = np.bincount(place, weights=1 - area)
    pairs = inside.sum() * outside.sum()
    if len(levels) < 2 or pairs <= 0:
        return float("nan")
    return float((inside * (np.cumsum(outside) - outside / 2)).sum() / pairs)


def heat_share(maps: NDArray[np.floating], shares: NDArray[np.floating]) -> Floats:
    """The share of a map's heat that lies on the pixels of a kind, heat being even within a cell; maps not negative."""
    heat, area = (_flat(cells) for cells in np.broadcast_arrays(maps, shares))
    return _ratio((heat * area).sum(axis=-1), heat.sum(axis=-1))


def border(grid: tuple[int, int]) -> Floats:
    """1 in the outermost cells of a grid, 0 within."""
    cells = np.ones(grid)
    cells[1:-1, 1:-1] = 0
    return cells


def _flat(cells: NDArray[np.floating]) -> Floats:
    return cells.reshape(*cells.shape[:-2], -1).astype(np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
