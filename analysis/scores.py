"""How good predictions are: arrays in, arrays out.

Throughout, `labels` and `predicted` are (N,) class indices in 0..C-1 and `probabilities` is (N, C). A class of which
there is no tile has no recall, F1 or AUC: these are NaN, and means over the classes ("macro") leave it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.standard_error import count_groups, recall_influences, standard_error

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""


def log_probabilities(probabilities: Floats) -> Floats:
    """Natural logarithms, of the same shape; of a probability of 0, which a finite logit does not have, the least
    there is: -708. They are logits that give these probabilities."""
    logarithms: Floats = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return logarithms


def confusion_matrix(labels: Indices, predicted: Indices, classes: int) -> Indices:
    """Counts of tiles (C, C): row the true class, column the predicted one."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def by_row(matrix: Indices) -> Floats:
    """Each row of a confusion matrix as shares of its sum; NaN where the class has no tile."""
    return _ratio(matrix, matrix.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; the interval is NaN where nothing is known of it."""

    value: float
    low: float
    high: float
    standard_error: float


def balanced_accuracy_interval(labels: Indices, predicted: Indices, groups: Indices | None = None) -> Interval:
    """Balanced accuracy, and how far from it that of other tiles, or of other slides or patients, may lie.

    The interval is Wilson's with the sample size that the standard error is worth and Student's quantile for the number
    of groups (Korn and Graubard, Survey Methodology 24, 1998): it lies within [0, 1]. Where no tile is wrong, nothing
    tells how alike those of a slide are: they count as independent. It covers the sampling of tiles, not of trainings.

    Args:
        labels: (N,) class indices.
        predicted: (N,) class indices.
        groups: (N,) indices of slides or patients; None: every tile stands for itself.
    """
    tiles = np.bincount(labels)
    right = labels == predicted
    value = _mean(_ratio(np.bincount(labels, weights=right, minlength=len(tiles)), tiles))
    units = len(labels) if groups is None else count_groups(groups)
    if units < 2:
        return Interval(value, *[float("nan")] * 3)
    error = standard_error(recall_influences(right, labels), groups)
    present = tiles[tiles > 0]
    as_tiles = len(present) ** 2 / float((1 / present).sum())
    worth = value * (1 - value) / error**2 if error > 0 else as_tiles
    return Interval(value, *wilson(value, worth, _student(units - 1)), error)


def wilson(share: float, size: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval of a share of `size` draws (JASA 22, 1927)."""
    spread = quantile * quantile / size
    half = quantile * math.sqrt(share * (1 - share) / size + spread / (4 * size))
    ends = [(share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1)]
    return max(0.0, ends[0]), min(1.0, ends[1])


@cache
def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: arctan(t / sqrt(degrees)) has a density like cos ** (degrees - 1)."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    density = np.abs(np.cos(angle)) ** (degrees - 1)
    below = np.cumsum(density) - (density + density[0]) / 2  # trapezoids
    return math.sqrt(degrees) * math.tan(float(np.interp(0.975 * below[-1], below, angle)))


@dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic: a polygon from (0, 0) to (1, 1)."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    area: float
    """Area under it; ties count one half. NaN, and the curve empty, without both positives and negatives."""


UNDEFINED = Roc(np.empty(0), np.empty(0), float("nan"))


def roc(positive: NDArray[np.bool_], score: Floats) -> Roc:
    """The curve of `score` (N,) for telling tiles that are `positive` (N,) from those that are not."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return UNDEFINED
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true_positives = np.cumsum(positive[order])[last_of_tie]
    false_positives = last_of_tie + 1 - true_positives
    rise = np.append(0.0, true_positives / positives)
    run = np.append(0.0, false_positives / negatives)
    return Roc(run, rise, float(np.trapezoid(rise, run)))


def roc_curves(labels: Indices, probabilities: Floats) -> list[Roc]:
    """One-vs-rest curve of each class."""
    return [roc(labels == index, probabilities[:, index]) for index in range(probabilities.shape[1])]


def micro_roc(labels: Indices, probabilities: Floats) -> Roc:
    """The curve of all N x C decisions "is this tile of that class" taken together."""
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    return roc(one_hot.ravel(), probabilities.ravel())


def macro_roc(curves: list[Roc]) -> Roc:
    """Mean of the true positive rates of the curves that are defined; its area is the mean of their areas."""
    defined = [curve for curve in curves if not np.isnan(curve.area)]
    if not defined:
        return UNDEFINED
    run = np.unique(np.concatenate([curve.false_positive_rate for curve in defined]))
    steps = [_foot_and_top(curve, run) for curve in defined]
    rise = np.mean(steps, axis=0).ravel()
    return Roc(np.repeat(run, 2), rise, float(np.mean([curve.area for curve in defined])))


def _foot_and_top(curve: Roc, run: Floats) -> Floats:
    """True positive rates (N, 2) of a curve at `run` (N,), where it rises vertically its lowest and its highest."""
    x, y = curve.false_positive_rate, curve.true_positive_rate
    top = np.interp(run, x, y)  # takes the last of equal x
    foot = np.interp(-run, -x[::-1], y[::-1])
    return np.stack([foot, top], axis=1)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision against recall, from the highest threshold on."""

    recall: Floats
    precision: Floats
    average: float
    """Average precision: the precision at each threshold, weighted by the recall that it adds. NaN, and the curve
    empty, without positives."""


def precision_recall(positive: NDArray[np.bool_], score: Floats) -> PrecisionRecall:
    """The curve of `score` (N,) for finding tiles that are `positive` (N,); tiles of one score are found together."""
    positives = int(positive.sum())
    if not positives:
        return PrecisionRecall(np.empty(0), np.empty(0), float("nan"))
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    found = np.cumsum(positive[order])[last_of_tie]
    recall, precision = found / positives, found / (last_of_tie + 1)
    return PrecisionRecall(recall, precision, float(np.diff(recall, prepend=0.0) @ precision))


def precision_recall_curves(labels: Indices, probabilities: Floats) -> list[PrecisionRecall]:
    """One-vs-rest curve of each class."""
    return [precision_recall(labels == index, probabilities[:, index]) for index in range(probabilities.shape[1])]


def micro_precision_recall(labels: Indices, probabilities: Floats) -> PrecisionRecall:
    """The curve of all N x C decisions "is this tile of that class" taken together."""
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    return precision_recall(one_hot.ravel(), probabilities.ravel())


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """`part / whole`, NaN where `whole` is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    )
    ratio: Floats = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _mean(values: Floats) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
