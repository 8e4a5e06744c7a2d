"""95 % intervals of scores by resampling tiles, or the slides or patients that they are from.

The interval lies between two quantiles of the scores of 2,000 resamples (Efron, Annals of Statistics 7, 1979): about
the 2.5 % and the 97.5 %, and further out where little is drawn from, for such an interval is too narrow of itself
("expanded percentiles", Hesterberg, The American Statistician 69:371, 2015). Resamples of fewer than 20 cannot reach
beyond the worst of them, so there it is the score with Student's quantile of their number times the standard deviation
of the resamples, which is that of the sample once the bootstrap's factor sqrt(n / (n - 1)) is in it (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, 5.3), and ends where the score's range does. Where the tiles of a
slide or patient are known, whole slides or patients are drawn, for their tiles are alike (Field and Welsh, J R Stat Soc
B 69, 2007).

A resample may lose a class. Means over the classes are then over those that it has, and the class's own scores are not
defined in it; their interval is from the other resamples, and is not given where more than 5 % have lost the class.

Where no resample differs nothing is known of how a score varies, and it has no interval: but a score that is 1 (nothing
wrong), or a share that is 0, has Wilson's (JASA 22, 1927) of as many draws as there are tiles (or slides or patients)
that it is about. A single slide or patient has no interval: it tells nothing of others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import SeedSequence
from scipy import stats
from threadpoolctl import threadpool_limits

from analysis.resampling import NOISE, Scores, Scoring, Weights
from analysis.scores import Floats, Indices, Interval, wilson
from trainer.temperature import LEAST, MOST

RESAMPLES = 2000
SEED = 0
FEW = 20
"""Of fewer slides, patients or tiles an interval is Student's."""
MOST_LOST = 0.05
AT_ONCE = 100
"""Resamples that are scored together, of few tiles: what they need fits in a processor's cache and a half."""
WEIGHTS = 1_000_000
"""Of many tiles so many weights are made at once; scoring them takes about a hundred bytes for each."""
THREADS = 8
"""At the most, for each takes memory."""
LOSSES = {"log_loss": (0.0, math.inf), "brier": (0.0, 2.0), "ece": (0.0, 1.0), "temperature": (LEAST, MOST)}
"""Where the values of what is no share lie; a temperature's, where it is searched for."""
AGREEMENTS = dict.fromkeys(("kappa", "mcc"), (-1.0, 1.0))
SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "precision", "recall", "specificity", "f1")
"""Of tiles: what is 0 where every tile of a class, or of all, is wrong."""
ROUNDING = 1e-12
EVERYWHERE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Estimates:
    """Scores of one set, each with its interval."""

    overall: Mapping[str, Interval]
    by_class: Mapping[str, Sequence[Interval]]
    grouped: bool
    """Whether slides or patients were drawn, and not tiles."""
    units: int
    """How many there are of what was drawn."""


@dataclass(frozen=True)
class Resampled:
    """A score, and what it was in each resample."""

    value: Floats
    """() or (C,)."""
    resamples: Floats
    """(B,) or (C, B)."""


def estimates(
    scorings: Sequence[Scoring], labels: Indices, predicted: Indices, groups: Indices | None, classes: int
) -> Estimates:
    """All scores of some scorings of the same N tiles, with intervals.

    Args:
        scorings: what is scored.
        labels: (N,) class indices.
        predicted: (N,) class indices.
        groups: (N,) indices of slides or patients; None: tiles are drawn.
        classes: how many there are.
    """
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max(initial=-1)) + 1
    true, said = (_units_of_classes(units, each, classes) for each in (labels, predicted))
    about = {"precision": said, "specificity": count - _units_of_one_class(units, labels, classes)}
    overall: dict[str, Interval] = {}
    by_class: dict[str, list[Interval]] = {}
    every = bootstrap(scorings, groups, len(labels))
    noise = every.pop(NOISE, None)
    for name, drawn in every.items():
        if name == "ece" and noise is not None:
            overall[name] = calibration_interval(drawn, noise.resamples, count)
        elif drawn.value.ndim == 0:
            overall[name] = interval(name, float(drawn.value), drawn.resamples, count, count)
        else:
            sizes = about.get(name, true)
            by_class[name] = [
                interval(name, float(value), resamples, int(size), count)
                for value, resamples, size in zip(drawn.value, drawn.resamples, sizes, strict=True)
            ]
    return Estimates(overall, by_class, groups is not None, count)


def bootstrap(scorings: Sequence[Scoring], groups: Indices | None, tiles: int) -> dict[str, Resampled]:
    """Scores, and those of 2,000 resamples: the same resamples for any scorings of the same N tiles."""
    values = _under(scorings, np.ones((tiles, 1), np.float32))
    columns = _at_once(tiles)
    seeds = SeedSequence(SEED).spawn(-(-RESAMPLES // columns))
    # Threads of our own, and none of the linear algebra's below them.
    with threadpool_limits(1), ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        parts = list(pool.map(lambda seed: _under(scorings, draw(groups, tiles, seed)), seeds))
    return {
        name: Resampled(value[..., 0], np.concatenate([part[name] for part in parts], axis=-1)[..., :RESAMPLES])
        for name, value in values.items()
    }


def _under(scorings: Sequence[Scoring], weights: Weights) -> Scores:
    return {name: values for scoring in scorings for name, values in scoring.under(weights).items()}


def _at_once(tiles: int) -> int:
    """How many resamples of N tiles are scored together."""
    return max(1, min(AT_ONCE, WEIGHTS // max(1, tiles)))


def draw(groups: Indices | None, tiles: int, seed: SeedSequence) -> Weights:
    """How often each tile is in each of the resamples that are scored together: (N, B)."""
    columns = _at_once(tiles)
    units = tiles if groups is None else int(groups.max(initial=-1)) + 1
    drawn = np.random.default_rng(seed).integers(0, max(1, units), (units, columns)) * columns + np.arange(columns)
    counts = np.bincount(drawn.ravel(), minlength=units * columns).reshape(units, columns).astype(np.float32)
    return counts if groups is None else counts[groups]


def interval(name: str, value: float, resamples: Floats, size: int, units: int) -> Interval:
    """The interval of a score: as the module says.

    Args:
        name: of the score.
        value: what it is.
        resamples: (B,), what it was in each; NaN where it was not defined.
        size: of how many draws Wilson's interval would be.
        units: how many tiles, or slides or patients, there are.
    """
    found = resampled_interval(value, resamples, units, (LOSSES | AGREEMENTS).get(name, (0.0, 1.0)))
    is_at_its_end = (value == 1 and name not in LOSSES) or (value == 0 and name in SHARES)
    if found.standard_error == 0 and is_at_its_end and size:
        return Interval(value, *wilson(value, size), 0.0)
    return found


def calibration_interval(error: Resampled, noise: Floats, units: int) -> Interval:
    """The interval of an expected calibration error, whose estimate is too high, and that of a resample once more so.

    The upper end is that of the "basic" interval (Davison and Hinkley, Bootstrap Methods and their Application, 1997,
    5.2), which is drawn back by the bias that resampling shows. Of a calibrated model resampling shows too little of
    it, and the basic lower end misses 0 in four of ten cases. But the estimate is at most the true error and the bins'
    own deviations together (the triangle inequality), so the lower end is the estimate less what these reach.

    Args:
        error: the estimate, and that of each resample.
        noise: (B,) the sum of the bins' deviations in each resample.
        units: how many tiles, or slides or patients, there are.
    """
    value = float(error.value)
    found, deviations = (
        resampled_interval(centre, each, units)
        for centre, each in ((value, error.resamples), (float(noise.mean()), noise))
    )
    if math.isnan(found.low) or math.isnan(deviations.low):
        return Interval(value, math.nan, math.nan, found.standard_error)
    upper = found.high if units < FEW else max(value, 2 * value - found.low)
    return Interval(value, max(0.0, value - deviations.high), min(1.0, upper), found.standard_error)


def resampled_interval(value: float, resamples: Floats, units: int, span: tuple[float, float] = EVERYWHERE) -> Interval:
    """The interval of resamples (B,) of so many units, of a score that lies in `span`.

    It is NaN of what too many resamples have lost, and of a single unit, which tells nothing of others; so it is, with
    a standard error of 0, where no resample differs.
    """
    defined = resamples[~np.isnan(resamples)]
    if math.isnan(value) or units < 2 or len(defined) < (1 - MOST_LOST) * len(resamples):
        return Interval(value, math.nan, math.nan, math.nan)
    if np.ptp(defined) < ROUNDING:
        return Interval(value, math.nan, math.nan, 0.0)
    error = float(defined.std(ddof=1))
    if units < FEW:
        error *= math.sqrt(units / (units - 1))
        half = float(stats.t.ppf(0.975, units - 1)) * error
        return Interval(value, max(span[0], value - half), min(span[1], value + half), error)
    low, high = np.quantile(defined, (tail(units), 1 - tail(units)))
    return Interval(value, float(low), float(high), error)


@cache
def tail(units: int) -> float:
    """The quantile at which an interval of so many units begins: that by which means that are normal get Student's."""
    return float(stats.norm.cdf(stats.t.ppf(0.025, units - 1) * math.sqrt(units / (units - 1))))


def _units_of_classes(units: Indices, each: Indices, classes: int) -> Indices:
    """How many tiles, or slides or patients, have a tile of each class: (C,)."""
    pairs = np.unique(units * classes + each)
    return np.bincount(pairs % classes, minlength=classes)


def _units_of_one_class(units: Indices, labels: Indices, classes: int) -> Indices:
    """How many have tiles of that class alone: (C,)."""
    pairs = np.unique(units * classes + labels)
    alone = np.bincount(pairs // classes)[pairs // classes] == 1
    return np.bincount(pairs[alone] % classes, minlength=classes)
