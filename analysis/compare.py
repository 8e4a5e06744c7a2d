"""Two models on the same tiles: how much better one is, and which tiles they tell differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.aggregate import evaluate, same_set
from analysis.collect import Model, Predictions
from analysis.comparison import Discordance, delong, differences, mcnemar
from analysis.evaluation import CLASS_NAMES, NAMES, Evaluation
from analysis.scores import Interval
from trainer.errors import UsageError
from trainer.wording import joined


@dataclass(frozen=True)
class SetComparison:
    """Two models on one set."""

    split: str
    kind: str
    tiles: int
    unit: str
    """What was drawn for the intervals, in words."""
    scores: pd.DataFrame
    """`score`, both models' values, and the `difference` (second less first) with its interval."""
    classes: pd.DataFrame
    """The same of each `class`; where tiles are drawn, with DeLong's p-value of the difference in AUC."""
    discordance: Discordance | None
    """McNemar's test; None where tiles are known to be of the same slides or patients, and so not independent."""
    disagreements: pd.DataFrame
    """Tiles that they tell differently, those first of which one is most certain and wrong."""


def compare(models: Sequence[Model]) -> list[SetComparison]:
    """Compares two models on every set whose tiles both have predicted.

    Raises:
        UsageError: where there is none.
    """
    first, second = models
    found = [
        _compare((first.name, second.name), one, Evaluation(aligned, None))
        for one in evaluate(first).evaluations
        if (aligned := same_set(one.predictions, second))
    ]
    if not found:
        sets = "\n".join(f"  {model.name}: {_sets(model)}" for model in models)
        raise UsageError(f"these have no set of the same tiles, so they cannot be compared:\n{sets}")
    return found


def _sets(model: Model) -> str:
    return joined(f"{each.split} ({len(each.labels):,} tiles)" for each in model.predictions)


def _compare(names: tuple[str, str], one: Evaluation, other: Evaluation) -> SetComparison:
    each = one.predictions
    found = differences(one.scorings, other.scorings, one.groups, len(each.labels))
    right = [evaluation.predictions.predicted == each.labels for evaluation in (one, other)]
    return SetComparison(
        split=each.split,
        kind=each.kind,
        tiles=len(each.labels),
        unit=one.unit,
        scores=pd.DataFrame([_row(names, name, one, other, found[name]) for name in NAMES]),
        classes=_classes(names, one, other, found),
        discordance=mcnemar(*right) if one.groups is None else None,
        disagreements=_disagreements(names, each, other.predictions),
    )


def _row(
    names: tuple[str, str], name: str, one: Evaluation, other: Evaluation, difference: Interval | list[Interval]
) -> dict[str, object]:
    values = {label: each.scores.overall[name] for label, each in zip(names, (one, other), strict=True)}
    return {"score": NAMES[name], **values, "difference": difference}


def _classes(
    names: tuple[str, str], one: Evaluation, other: Evaluation, found: dict[str, Interval | list[Interval]]
) -> pd.DataFrame:
    rows = []
    for index, label in enumerate(one.predictions.classes):
        for name, title in CLASS_NAMES.items():
            of_class = found[name]
            assert isinstance(of_class, list)
            values = {model: each.scores.by_class[name][index] for model, each in zip(names, (one, other), strict=True)}
            row = {"class": label, "score": title, **values, "difference": of_class[index]}
            if one.groups is None:
                row["DeLong p"] = _delong(one, other, index) if name == "auc" else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def _delong(one: Evaluation, other: Evaluation, index: int) -> float:
    scores = (each.predictions.probabilities[:, index] for each in (one, other))
    return delong(one.predictions.labels == index, *scores).p_value


def _disagreements(names: tuple[str, str], one: Predictions, other: Predictions) -> pd.DataFrame:
    differ = np.flatnonzero(one.predicted != other.predicted)
    frame = one.table.iloc[differ][["tile_id", "path", "group", "label"]].reset_index(drop=True)
    worst = np.zeros(len(differ))
    for name, each in zip(names, (one, other), strict=True):
        said, certain = each.predicted[differ], each.probabilities[differ].max(axis=1)
        frame[name] = [each.classes[index] for index in said]
        frame[f"{name} probability"] = certain
        worst = np.maximum(worst, np.where(said != one.labels[differ], certain, 0.0))
    return frame.iloc[np.argsort(-worst, kind="stable")].reset_index(drop=True)
