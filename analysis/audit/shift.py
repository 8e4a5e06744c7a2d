"""How the colours of sets differ: intensities and stains by class, and how well colour tells two sets apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

from analysis.audit.findings import NOTE, WARNING, Finding
from analysis.audit.measure import Measures
from analysis.audit.sets import VAL, Sets
from analysis.audit.shortcuts import histograms, kernel_regression, may_end_early
from analysis.audit.stain import Stain, angle_between, estimate_stain
from analysis.bootstrap import bootstrap, interval
from analysis.evaluation import group_indices
from analysis.kinds import UNLABELLED
from analysis.resampling import Ranks
from analysis.scores import Interval
from trainer.wording import counted

ALL = "all classes"
SEED = 0
FOLDS = 5
MOST = 200
"""Tiles that each class of each set gives to a comparison at most."""
FEWEST = 20
"""Tiles of each set without which there is no domain classifier."""
SHIFTED = 0.9
"""AUC from which two sets are said to differ in colour."""
COLOURS = ("red", "green", "blue")


def describe_colours(sets: Sets, measures: Measures) -> pd.DataFrame:
    """One row a set and class, and one of all classes (each counting the same).

    `set, class, tiles`; mean level (0-255) of `red, green, blue`; `brightness`, the mean of the three, and `brightness
    spread`, its standard deviation over tiles; optical densities `haematoxylin red` to `eosin blue` of the stains
    estimated from at most 200 tiles and their `strength`; degrees from the same class's stains in the training set.
    NaN where there is none.
    """
    rows = []
    stains: dict[tuple[str, str], Stain | None] = {}
    for name in sets.names:
        for label, members in _members(sets, name):
            stain = estimate_stain(measures.pixels[_drawn([members])].reshape(-1, 3))
            stains[name, label] = stain
            reference = stains.get((str(sets.training), label)) if name != sets.training else None
            rows.append(
                {
                    "set": name,
                    "class": label,
                    "tiles": len(members),
                    **_intensities(measures.mean[members].astype(np.float64)),
                    **_stain_columns(stain, reference),
                }
            )
    return pd.DataFrame(rows)


def _members(sets: Sets, name: str) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The tiles of each class of a set, and those of none; then as many of each class as the smallest has, up to
    `MOST`. Where no class is known, the tiles of none stand for all."""
    of = sets.of(name)
    every = [(label, np.flatnonzero(of & (sets.tiles["code"] == code))) for code, label in enumerate(sets.classes)]
    of_class = [(label, rows) for label, rows in every if len(rows)]
    unknown = np.flatnonzero(of & ~sets.is_labelled)
    of_none = [(UNLABELLED, unknown)] if len(unknown) else []
    yield from (*of_class, *of_none)
    drawn = _drawn([rows for _, rows in of_class or of_none])
    if len(drawn):
        yield ALL, drawn


def _drawn(of_class: list[NDArray[np.int64]], most: int = MOST) -> NDArray[np.int64]:
    """Equally many tiles of each class, at most `most`, drawn with a fixed seed."""
    if not of_class:
        return np.empty(0, np.int64)
    count = min(most, *map(len, of_class))
    rng = np.random.default_rng(SEED)
    return np.concatenate([np.sort(rng.choice(rows, count, replace=False)) for rows in of_class])


def _intensities(mean: NDArray[np.float64]) -> dict[str, float]:
    brightness = mean.mean(axis=1)
    levels = dict(zip(COLOURS, map(float, mean.mean(axis=0)), strict=True))
    return {**levels, "brightness": float(brightness.mean()), "brightness spread": float(brightness.std())}


def _stain_columns(stain: Stain | None, reference: Stain | None) -> dict[str, float]:
    columns: dict[str, float] = {}
    for place, name in enumerate(("haematoxylin", "eosin")):
        vector = np.full(3, np.nan) if stain is None else getattr(stain, name)
        columns |= {f"{name} {colour}": float(each) for colour, each in zip(COLOURS, vector, strict=True)}
        columns[f"{name} strength"] = np.nan if stain is None else float(stain.strength[place])
        known = stain is not None and reference is not None
        columns[f"{name} degrees"] = angle_between(vector, getattr(reference, name)) if known else np.nan
    return columns


def tell_apart(sets: Sets, measures: Measures) -> pd.DataFrame:
    """How well colour tells validation and each external set from training: `a, b, tiles` of each, `classes, folds,
    AUC`, and its 95 % interval from `low` to `high`.

    The classifier is that of the colour histogram's baseline, with a kernel. Of each class that both sets have, both
    give equally many tiles (at most 200), so that classes tell nothing. Scores are pooled over five cross-validated
    folds: of whole groups where all are known and there are five in each set (`folds` "by group"), else by tile. 0.5:
    cannot be told apart; 1: always. The interval is the bootstrap's (`analysis.bootstrap`), of whole groups where folds
    are, else of tiles: it covers which tiles are scored, not which the classifiers learned from.
    """
    rows: list[tuple[object, ...]] = []
    for name in sets.tested if sets.training else ():
        if name == VAL or name in sets.external:
            rows += _told_apart(sets, measures, str(sets.training), name)
    return pd.DataFrame(rows, columns=["a", "b", "tiles", "classes", "folds", "AUC", "low", "high"])


def _told_apart(sets: Sets, measures: Measures, one: str, other: str) -> Iterator[tuple[object, ...]]:
    code = sets.tiles["code"].to_numpy()
    cells = [
        [np.flatnonzero(sets.of(name) & (code == each)) for name in (one, other)] for each in np.unique(code[code >= 0])
    ]
    shared = [pair for pair in cells if all(map(len, pair))]
    drawn = [_drawn(pair) for pair in shared]
    tiles = np.concatenate(drawn) if drawn else np.empty(0, np.int64)
    if len(tiles) < 2 * FEWEST:
        return
    is_other = sets.of(other)[tiles]
    colour = histograms(measures)[tiles]
    folds, groups, said = _folds(sets.tiles["group"].iloc[tiles], is_other)
    model = kernel_regression(len(tiles) // 2)
    with may_end_early():
        score = cross_val_predict(model, colour, is_other, cv=folds, groups=groups, method="decision_function")
    area = _area(is_other, score, groups)
    yield one, other, len(tiles) // 2, len(shared), said, area.value, area.low, area.high


def _area(is_other: NDArray[np.bool_], score: NDArray[np.float64], groups: NDArray[np.object_] | None) -> Interval:
    """The area under the ROC curve, and its interval by resampling groups, or tiles."""
    named = None if groups is None else group_indices(pd.Series(groups))
    ranks = Ranks(is_other.astype(np.int64), np.stack([-score, score], axis=1))
    drawn = bootstrap([ranks], named, len(score))["auc"]
    units = len(score) if named is None else int(named.max()) + 1
    return interval("auc", float(drawn.value[1]), drawn.resamples[1], units, units)


def _folds(
    groups: pd.Series, is_other: NDArray[np.bool_]
) -> tuple[StratifiedGroupKFold | StratifiedKFold, NDArray[np.object_] | None, str]:
    """By group where both sets have as many groups as there are folds. Equal names in two stores are kept apart."""
    named = (groups.astype(str) + is_other.astype(str)).to_numpy(dtype=object)
    enough = min(len(np.unique(named[is_other == each])) for each in (False, True)) >= FOLDS
    if groups.notna().all() and enough:
        return StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED), named, "by group"
    return StratifiedKFold(FOLDS, shuffle=True, random_state=SEED), None, "by tile"


def judge_shift(sets: Sets, colours: pd.DataFrame, domains: pd.DataFrame) -> Iterator[Finding]:
    """A sentence for each external set; a warning where colour tells it from training with an AUC of 0.9 or more."""
    overall = colours[colours["class"] == ALL] if len(colours) else colours
    here = {str(row["set"]): row for row in overall.to_dict("records")}
    told = {str(row["b"]): row for row in domains.to_dict("records")}
    for name in sets.external:
        parts = [_apart(name, told[name])] if name in told else []
        if name in here and sets.training in here:
            parts.append(_colours(name, here[name], here[sets.training]))
        if parts:
            is_far = name in told and told[name]["AUC"] >= SHIFTED
            yield Finding(WARNING if is_far else NOTE, "shift", "; ".join(parts))


def _apart(name: str, told: Mapping[Hashable, Any]) -> str:
    return (
        f"colour alone tells {name} from {told['a']} with an AUC of {told['AUC']:.2f} ({_ends(told)}0.5: not at all; "
        f"{counted(int(told['tiles']), 'tile')} of each, classes balanced, cross-validated {told['folds']})"
    )


def _ends(told: Mapping[Hashable, Any]) -> str:
    if np.isnan(told["low"]):
        return ""
    return f"95 % interval {told['low']:.2f}-{told['high']:.2f} {told['folds']}; "


def _colours(name: str, there: Mapping[Hashable, Any], here: Mapping[Hashable, Any]) -> str:
    text = f"mean brightness of {name} {there['brightness']:.0f} against {here['brightness']:.0f} of 255"
    if np.isnan(there["haematoxylin degrees"]):
        return text
    turned = (f"{there[f'{stain} degrees']:.0f}° ({stain})" for stain in ("haematoxylin", "eosin"))
    return f"{text}, stains turned by {' and '.join(turned)}"
