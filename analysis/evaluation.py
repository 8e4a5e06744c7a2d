"""How good one set of predictions is: every score with its interval, before and after the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.bootstrap import FEW, RESAMPLES, Estimates, bootstrap, estimates, interval
from analysis.calibration import at_temperature
from analysis.collect import Predictions
from analysis.resampling import Confidence, Counts, Ranks, Scoring, Temperature, Told
from analysis.scores import Indices, Interval
from trainer.wording import counted, joined

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "kappa": "Cohen's kappa",
    "mcc": "MCC",
    "macro_auc": "macro AUC",
    "micro_auc": "micro AUC",
    "macro_ap": "macro AP",
    "micro_ap": "micro AP",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
}
"""Scores of a whole set, as people write them."""
CLASS_NAMES = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "auc": "AUC",
    "ap": "AP",
}
PERCENTILES = f"expanded percentile intervals (Hesterberg 2015) of {RESAMPLES:,} bootstrap resamples"
STUDENTS = (
    f"Student's t intervals (of fewer than {FEW} units) by the standard error of {RESAMPLES:,} bootstrap resamples, "
    "corrected by sqrt(n / (n - 1)),"
)
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
CONFIDENCE = ("log_loss", "brier", "ece")


@dataclass(frozen=True)
class Evaluation:
    """One set of predictions, scored."""

    predictions: Predictions
    temperature: float | None
    """Fitted on validation; None where there is none."""

    @cached_property
    def groups(self) -> Indices | None:
        """(N,) indices of slides or patients; None where that of a tile is unknown."""
        return group_indices(self.predictions.table["group"])

    @cached_property
    def scores(self) -> Estimates:
        """Of the predictions as they are."""
        return self._estimates(self.scorings)

    @cached_property
    def scorings(self) -> list[Scoring]:
        """What is scored, for resamples that others share."""
        labels, probabilities = self.predictions.labels, self.predictions.probabilities
        counts = Counts(labels, self.predictions.predicted, len(self.predictions.classes))
        return [counts, Ranks(labels, probabilities), Confidence(labels, probabilities)]

    @cached_property
    def at_temperature(self) -> Estimates | None:
        """Log loss, Brier score and calibration error after the temperature; it changes no class."""
        if self.temperature is None:
            return None
        cooled = at_temperature(self.predictions.probabilities, self.temperature)
        return self._estimates([Confidence(self.predictions.labels, cooled)])

    @cached_property
    def own_temperature(self) -> Interval:
        """The temperature that would fit this very set, with its interval."""
        fitted = Temperature(self.predictions.labels, self.predictions.probabilities)
        return self._estimates([fitted]).overall["temperature"]

    @cached_property
    def selective(self) -> pd.DataFrame:
        """Accuracy if only the most certain tiles are told: columns `coverage, tiles, confidence from, accuracy`.

        The threshold is the lowest confidence of that share of the tiles; all that reach it are told.
        """
        each = self.predictions
        confidence, right = each.probabilities.max(axis=1), each.predicted == each.labels
        last = np.ceil(np.round(np.array(COVERAGES) * len(right), 6)).astype(np.int64) - 1
        thresholds = np.sort(confidence)[::-1][last] if len(right) else np.empty(0)
        found = bootstrap([Told(right, confidence, thresholds)], self.groups, len(right))["told"]
        rows = []
        for place, threshold in enumerate(thresholds):
            told = confidence >= threshold
            size = int(told.sum()) if self.groups is None else len(np.unique(self.groups[told]))
            value, resamples = float(found.value[place]), found.resamples[place]
            accuracy = interval("accuracy", value, resamples, size, self.scores.units)
            rows.append((COVERAGES[place], int(told.sum()), float(threshold), accuracy))
        return pd.DataFrame(rows, columns=["coverage", "tiles", "confidence from", "accuracy"])

    @property
    def unit(self) -> str:
        """What was drawn for the intervals, in words."""
        return counted(self.scores.units, "group" if self.scores.grouped else "tile")

    @property
    def warning(self) -> str | None:
        """What a reader must know of the intervals."""
        if not self.scores.grouped or self.scores.units >= FEW:
            return None
        if self.scores.units == 1:
            return "there are no intervals: a single slide or patient tells nothing of others"
        return f"intervals from {self.unit} (slides or patients) are wide, and rest on few: it takes about {FEW}"

    def _estimates(self, scorings: Sequence[Scoring]) -> Estimates:
        each = self.predictions
        return estimates(scorings, each.labels, each.predicted, self.groups, len(self.predictions.classes))


def interval_rule(evaluations: Sequence[Evaluation]) -> str:
    """How the intervals of some sets were found, in words, and for which where that differs."""
    sets: dict[str, list[str]] = {}
    for each in evaluations:
        if each.scores.units > 1:
            unit = "slides or patients" if each.scores.grouped else "tiles"
            rule = STUDENTS if each.scores.units < FEW else PERCENTILES
            names = sets.setdefault(f"{rule} of {unit}", [])
            names += [each.predictions.split] if each.predictions.split not in names else []
    if len(sets) > 1:
        return "; ".join(f"on {joined(names)}, {rule}" for rule, names in sets.items())
    return next(iter(sets), "none: a single slide or patient tells nothing of others")


def group_indices(groups: pd.Series) -> Indices | None:
    """Slides or patients as numbers; None where that of a tile is unknown."""
    if groups.isna().any() or not len(groups):
        return None
    return np.asarray(pd.factorize(groups)[0], dtype=np.int64)
