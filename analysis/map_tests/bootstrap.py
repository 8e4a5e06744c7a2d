"""A mean over tiles with its 95 % interval, over slides or patients where these are known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import EVERYWHERE, RESAMPLES, resampled_interval


@dataclass(frozen=True)
class Mean:
    """A mean and its interval, which is NaN of a single unit, and a point where all units say the same."""

    value: float
    low: float
    high: float
    tiles: int
    units: int
    """Groups, or tiles where groups are not known, that were drawn from."""


def mean(
    values: NDArray[np.floating], groups: NDArray[np.int64] | None, span: tuple[float, float] = EVERYWHERE
) -> Mean:
    """The mean of those of `values` (N,) that are not NaN, and its interval.

    Whole groups are drawn, with all of their tiles, and the interval is that of `analysis.bootstrap`. The draws are the
    same in every call for as many groups.

    Args:
        values: one a tile.
        groups: (N,) indices of slides or patients; None: every tile stands for itself.
        span: where the mean can lie.
    """
    there = ~np.isnan(values)
    kept = values[there].astype(np.float64)
    units = np.arange(len(kept)) if groups is None else np.unique(groups[there], return_inverse=True)[1]
    count = int(units.max()) + 1 if len(units) else 0
    value = float(kept.mean()) if count else float("nan")
    if not count:
        return Mean(value, float("nan"), float("nan"), 0, 0)
    sums, sizes = np.bincount(units, weights=kept), np.bincount(units)
    drawn = _draws(count)
    found = resampled_interval(value, (drawn @ sums) / (drawn @ sizes), count, span)
    low, high = (value, value) if found.standard_error == 0 else (found.low, found.high)
    return Mean(value, low, high, len(kept), count)


@cache
def _draws(count: int) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample, (RESAMPLES, count)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
