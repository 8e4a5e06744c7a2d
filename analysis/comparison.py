"""Two sets of predictions for the same tiles: which is better, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.bootstrap import bootstrap, resampled_interval
from analysis.resampling import Scoring
from analysis.scores import NORMAL, Floats, Indices, Interval
from trainer.standard_error import count_groups

LEAST = 10
"""Of fewer tiles of a class, or of the others, DeLong's test calls chance a difference too often."""


def differences(
    first: Sequence[Scoring], second: Sequence[Scoring], groups: Indices | None, tiles: int
) -> dict[str, Interval | list[Interval]]:
    """Each score of the second less that of the first, with the 95 % interval of a paired bootstrap.

    Both are scored on the same resamples of tiles, or of slides or patients, so what makes a tile hard for both does
    not widen the interval. A single slide or patient leaves none; nor do resamples that do not differ, but of accuracy.

    Args:
        first: scorings of the one's predictions for N tiles.
        second: the same of the other's, for the same tiles in the same order.
        groups: (N,) indices of slides or patients; None: tiles are drawn.
        tiles: N.
    """
    drawn = [bootstrap(scorings, groups, tiles) for scorings in (first, second)]
    units = tiles if groups is None else count_groups(groups)
    found: dict[str, Interval | list[Interval]] = {}
    for name, one in drawn[0].items():
        value, resamples = drawn[1][name].value - one.value, drawn[1][name].resamples - one.resamples
        if name == "accuracy":
            found[name] = _of_accuracy(float(value), resamples, units)
        elif value.ndim == 0:
            found[name] = resampled_interval(float(value), resamples, units)
        else:
            found[name] = [
                resampled_interval(float(each), row, units) for each, row in zip(value, resamples, strict=True)
            ]
    return found


def _of_accuracy(value: float, resamples: Floats, units: int) -> Interval:
    """The interval of a difference in accuracy; where no unit is told differently, Tango's score interval for pairs
    (Statistics in Medicine 17:891, 1998), which is then z^2 / (n + z^2) to both sides."""
    found = resampled_interval(value, resamples, units)
    if found.standard_error == 0 and value == 0:
        half = NORMAL**2 / (units + NORMAL**2)
        return Interval(0.0, -half, half, 0.0)
    return found


@dataclass(frozen=True)
class Discordance:
    """Tiles that one of two tells right and the other wrong, and McNemar's test of whether it is chance."""

    only_first: int
    """Right by the first alone."""
    only_second: int
    p_value: float
    """Two-sided, exact; 1 where they never disagree."""


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> Discordance:
    """McNemar's test (Psychometrika 12, 1947) by the binomial distribution; it takes tiles for independent.

    Args:
        first_right: (N,) whether the first tells a tile right.
        second_right: (N,) the same of the second.
    """
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    both = only_first + only_second
    return Discordance(only_first, only_second, float(stats.binomtest(only_first, both).pvalue) if both else 1.0)


@dataclass(frozen=True)
class AreaTest:
    """Areas under two ROC curves of the same tiles, and DeLong's test of their difference."""

    first: float
    second: float
    standard_error: float
    """Of the difference."""
    p_value: float
    """Two-sided; NaN of fewer than `LEAST` tiles of either side, and where the areas have no variance."""


def delong(positive: np.ndarray, first: Floats, second: Floats) -> AreaTest:
    """The test of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), by midranks (Sun and Xu, IEEE Signal
    Processing Letters 21, 2014); it takes tiles for independent.

    Args:
        positive: (N,) whether a tile is of the class.
        first: (N,) scores of the one.
        second: (N,) scores of the other.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return AreaTest(math.nan, math.nan, math.nan, math.nan)
    of_positives, of_negatives = zip(*(_placements(positive, score) for score in (first, second)), strict=True)
    areas = [float(placements.mean()) for placements in of_positives]
    if min(positives, negatives) < LEAST:
        return AreaTest(areas[0], areas[1], math.nan, math.nan)
    sides = ((of_positives, positives), (of_negatives, negatives))
    error = math.sqrt(sum(float(np.var(other - one, ddof=1)) / count for (one, other), count in sides))
    p_value = 2 * float(stats.norm.sf(abs(areas[1] - areas[0]) / error)) if error else math.nan
    return AreaTest(areas[0], areas[1], error, p_value)


def _placements(positive: np.ndarray, score: Floats) -> tuple[Floats, Floats]:
    """Of each positive the share of negatives below it, and of each negative the share of positives above it."""
    every = stats.rankdata(score)
    above, below = score[positive], score[~positive]
    of_positives = (every[positive] - stats.rankdata(above)) / len(below)
    of_negatives = 1 - (every[~positive] - stats.rankdata(below)) / len(above)
    return of_positives, of_negatives
