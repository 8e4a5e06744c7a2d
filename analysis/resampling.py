"""Scores under many weightings of the tiles at once: what a bootstrap needs.

Every score here is a function of sums of weights, so a sparse matrix takes N tiles under B weightings to those sums in
one product. Weights are (N, B) float32, whole numbers, so that their sums are exact; a column of ones gives the score
itself. Scores are (B,), those of the classes (C, B), and NaN where they are not defined: a class of which there is no
tile has no recall, F1, AUC or average precision, one that was never predicted no precision; means over the classes
("macro") leave such a class out.
"""

from __future__ import annotations

import math
import warnings
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from analysis.scores import Floats, Indices, log_probabilities
from trainer.temperature import LEAST, MOST

Weights = NDArray[np.float32]
Scores = dict[str, Floats]
BINS = 15
"""Of confidence, of equal width: as in Guo et al. (ICML 2017)."""
NOISE = "ece_noise"
TEMPERATURES = 241
"""Candidates on a logarithmic axis; between the best three a parabola finds the best."""


class Scoring(Protocol):
    """Some scores of one set of predictions; what does not depend on weights is settled beforehand."""

    def under(self, weights: Weights) -> Scores:
        """The scores under each column of `weights` (N, B)."""
        ...


class Counts:
    """What the confusion matrix tells."""

    def __init__(self, labels: Indices, predicted: Indices, classes: int):
        cells, place = np.unique(labels * classes + predicted, return_inverse=True)
        self._sums, self._cells, self._classes = _sums(place, np.arange(len(labels)), len(labels)), cells, classes

    def under(self, weights: Weights) -> Scores:
        """As `Scoring`.

        Cohen's kappa (Educ Psychol Meas 20, 1960) and the multiclass Matthews correlation (Gorodkin, Comput Biol Chem
        28, 2004) compare with the agreement of independent draws; where everything is of one class they are not
        defined.
        """
        cells = np.zeros((self._classes**2, weights.shape[1]))
        cells[self._cells] = self._sums @ weights
        matrix = cells.reshape(self._classes, self._classes, -1)
        right, true, said = np.einsum("iib->ib", matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        tiles = true.sum(axis=0)
        f1 = _ratio(2 * right, np.where(true > 0, true + said, 0))
        by_class = {
            "precision": _ratio(right, said),
            "recall": _ratio(right, true),
            "specificity": _ratio(tiles - true - said + right, tiles - true),
            "f1": f1,
        }
        agreed, by_chance = right.sum(axis=0) * tiles, (true * said).sum(axis=0)
        spread = (tiles**2 - (true**2).sum(axis=0)) * (tiles**2 - (said**2).sum(axis=0))
        overall = {
            "accuracy": _ratio(right.sum(axis=0), tiles),
            "balanced_accuracy": _mean(by_class["recall"]),
            "macro_f1": _mean(f1),
            "weighted_f1": _ratio(np.nansum(f1 * true, axis=0), tiles),
            "kappa": _ratio(agreed - by_chance, tiles**2 - by_chance),
            "mcc": _ratio(agreed - by_chance, np.sqrt(spread)),
        }
        return overall | by_class


class Ranks:
    """Areas under ROC curves (ties count one half) and average precisions, one class against the rest."""

    def __init__(self, labels: Indices, probabilities: Floats):
        tiles, classes = probabilities.shape
        one_hot = labels[:, None] == np.arange(classes)
        every = np.arange(tiles)
        self._each = [_Ranking(one_hot[:, index], probabilities[:, index], every, tiles) for index in range(classes)]
        self._micro = _Ranking(one_hot.ravel(), probabilities.ravel(), every.repeat(classes), tiles)

    def under(self, weights: Weights) -> Scores:
        """As `Scoring`; `micro` is of all N x C decisions "is this tile of that class" together."""
        areas, precisions = (
            np.stack(values) for values in zip(*(one.under(weights) for one in self._each), strict=True)
        )
        micro_area, micro_precision = self._micro.under(weights)
        return {
            "macro_auc": _mean(areas),
            "micro_auc": micro_area,
            "macro_ap": _mean(precisions),
            "micro_ap": micro_precision,
            "auc": areas,
            "ap": precisions,
        }


class _Ranking:
    """Decisions in the order of their scores, cut before and behind each tie that has a positive one."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats, tile: Indices, tiles: int):
        order = np.argsort(-score, kind="stable")
        last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        tie = np.searchsorted(last_of_tie, np.arange(len(score)))
        positives = np.flatnonzero(positive[order])
        ties, place = np.unique(tie[positives], return_inverse=True)
        starts, ends = np.append(0, last_of_tie + 1)[ties], last_of_tie[ties] + 1
        cuts = np.unique(np.concatenate([starts, ends]))
        segment = np.searchsorted(cuts, np.arange(len(score)), side="right")
        self._before = _sums(segment, tile[order], tiles, len(cuts) + 1)
        self._positive = _sums(place, tile[order[positives]], tiles, len(ties))
        self._starts, self._ends = np.searchsorted(cuts, starts), np.searchsorted(cuts, ends)

    def under(self, weights: Weights) -> tuple[Floats, Floats]:
        """Area under the curve, and average precision: both (B,)."""
        ranked = np.cumsum(self._before @ weights, axis=0)
        positive = self._positive @ weights
        found = np.cumsum(positive, axis=0)
        positives = positive.sum(axis=0, dtype=np.float64)
        negatives = ranked[-1] - positives
        at_end = ranked[self._ends]
        within = at_end - ranked[self._starts] - positive  # negatives that tie
        below = negatives - (at_end - found) + within / 2
        area = np.einsum("kb,kb->b", positive, below, dtype=np.float64)
        precision = np.divide(found, at_end, out=np.zeros_like(found), where=at_end > 0)
        average = np.einsum("kb,kb->b", positive, precision, dtype=np.float64)
        return _ratio(area, positives * negatives), _ratio(average, positives)


class Confidence:
    """How far probabilities can be believed: log loss, Brier score, expected calibration error.

    The error is that of the highest probability, in 15 bins of equal width. Its estimate is too high: bins with few
    tiles differ by chance, most where a model is well calibrated (Roelofs et al., AISTATS 2022). Log loss and Brier
    score (over all classes, 0 to 2) have no such bias.
    """

    def __init__(self, labels: Indices, probabilities: Floats):
        every = np.arange(len(labels))
        of_true = probabilities[every, labels]
        brier = np.square(probabilities).sum(axis=1) - 2 * of_true + 1
        self._losses = np.stack([-log_probabilities(of_true), brier])
        confidence = probabilities.max(axis=1)
        gap = confidence - (probabilities.argmax(axis=1) == labels)
        self._gaps = csr_array((gap, (confidence_bin(confidence), every)), shape=(BINS, len(labels)))
        self._gap = self._gaps @ np.ones((len(labels), 1)) / max(1, len(labels))

    def under(self, weights: Weights) -> Scores:
        """As `Scoring`; `ece_noise` is by how much the bins' gaps, each a share of all tiles, differ from the set's."""
        exact = weights.astype(np.float64)
        tiles = exact.sum(axis=0)
        log_loss, brier = _ratio(self._losses @ exact, tiles)
        gaps = _ratio(self._gaps @ exact, tiles)
        error, noise = (np.abs(each).sum(axis=0) for each in (gaps, gaps - self._gap))
        return {"log_loss": log_loss, "brier": brier, "ece": error, NOISE: noise}


class Told:
    """Accuracy among tiles whose confidence reaches a threshold, for several."""

    def __init__(self, right: NDArray[np.bool_], confidence: Floats, thresholds: Floats):
        told = confidence >= thresholds[:, None]
        self._right, self._told = (each.astype(np.float32) for each in (told & right, told))

    def under(self, weights: Weights) -> Scores:
        """As `Scoring`; a row for each threshold."""
        right, told = (np.asarray(each @ weights, np.float64) for each in (self._right, self._told))
        return {"told": _ratio(right, told)}


def confidence_bin(confidence: Floats) -> Indices:
    """In which of `BINS` bins of equal width each confidence lies; each bin has its upper end."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


class Temperature:
    """The temperature that fits best (see `trainer.temperature`), under each weighting."""

    def __init__(self, labels: Indices, probabilities: Floats):
        self._scale = np.linspace(math.log(LEAST), math.log(MOST), TEMPERATURES)
        logits = log_probabilities(probabilities)
        logits -= logits.max(axis=1, keepdims=True)
        of_true = logits[np.arange(len(labels)), labels]
        scaled = (logits / math.exp(place) for place in self._scale)
        self._losses = np.stack(
            [
                np.log(np.exp(each).sum(axis=1)) - of_true / math.exp(place)
                for place, each in zip(self._scale, scaled, strict=True)
            ]
        )

    def under(self, weights: Weights) -> Scores:
        """As `Scoring`."""
        losses = self._losses @ weights.astype(np.float64)
        best = np.clip(losses.argmin(axis=0), 1, TEMPERATURES - 2)
        left, middle, right = (losses[best + step, np.arange(losses.shape[1])] for step in (-1, 0, 1))
        offset = np.clip(_ratio(left - right, 2 * (left - 2 * middle + right)), -1, 1)
        step = self._scale[1] - self._scale[0]
        found = np.exp(self._scale[best] + np.nan_to_num(offset) * step)
        return {"temperature": np.where(weights.any(axis=0), found, math.nan)}


def _sums(row: Indices, tile: Indices, tiles: int, rows: int | None = None) -> csr_array:
    """The matrix (rows, N) that sums weights: a one for each pair of a row and a tile."""
    height = int(row.max(initial=-1)) + 1 if rows is None else rows
    return csr_array((np.ones(len(row), np.float32), (row, tile)), shape=(height, tiles))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, NaN where `whole` is 0."""
    shape = np.broadcast_shapes(np.shape(part), np.shape(whole))
    ratio: Floats = np.full(shape, np.nan)
    np.divide(part, whole, out=ratio, where=np.asarray(whole) != 0)
    return ratio


def _mean(values: Floats) -> Floats:
    """Means over the classes (C, B) that are defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no class: NaN is right
        mean: Floats = np.nanmean(values, axis=0)
    return mean
