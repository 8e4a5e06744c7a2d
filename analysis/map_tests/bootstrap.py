"""A mean over tiles with its 95 % interval, over slides or patients where these are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
LEAST, FEW = 5, 20
"""Fewer groups or tiles than the first give no interval; fewer than the second one that may be too narrow."""


@dataclass(frozen=True)
class Mean:
    """A mean and its interval, which is NaN where there are fewer than `LEAST` units."""

    value: float
    low: float
    high: float
    tiles: int
    units: int
    """Groups, or tiles where groups are not known, that were drawn from."""


def mean(values: NDArray[np.floating], groups: NDArray[np.int64] | None) -> Mean:
    """The mean of those of `values` (N,) that are not NaN, and its expanded percentile bootstrap.

    Whole groups are drawn, with all of their tiles. A percentile interval is too narrow for few units; its quantiles
    are those that give Student's interval where means are normal (Hesterberg, The American Statistician 69:371, 2015).
    The draws are the same in every call for as many groups.

    Args:
        values: one a tile.
        groups: (N,) indices of slides or patients; None: every tile stands for itself.
    """
    there = ~np.isnan(values)
    kept = values[there].astype(np.float64)
    units = np.arange(len(kept)) if groups is None else np.unique(groups[there], return_inverse=True)[1]
    count = int(units.max()) + 1 if len(units) else 0
    value = float(kept.mean()) if count else float("nan")
    if count < LEAST:
        return Mean(value, float("nan"), float("nan"), len(kept), count)
    sums, sizes = np.bincount(units, weights=kept), np.bincount(units)
    drawn = _draws(count)
    low, high = np.quantile((drawn @ sums) / (drawn @ sizes), (_tail(count), 1 - _tail(count)))
    return Mean(value, float(low), float(high), len(kept), count)


@cache
def _draws(count: int) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample, (RESAMPLES, count)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


@cache
def _tail(count: int) -> float:
    return float(stats.norm.cdf(stats.t.ppf(0.025, count - 1) * math.sqrt(count / (count - 1))))
