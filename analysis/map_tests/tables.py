"""From numbers of tiles to means of classes, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.map_tests.bootstrap import mean
from analysis.map_tests.names import ALL, MEASURES, OWN
from analysis.map_tests.perturbation import FILLS, ORDERS, SHARES, WAYS

Indices = NDArray[np.int64]
Groups = Indices | None
MEANS = ("tiles", "units", "value", "low", "high")
DIFFERENCES = ("difference", "difference_low", "difference_high")
SPAN = (-1.0, 1.0)
"""Where correlations, AUROCs, shares of heat less an area, and probabilities lie."""


def associations(
    by_map: Mapping[str, pd.DataFrame], labels: Indices, classes: Sequence[str], groups: Groups
) -> pd.DataFrame:
    """One row a class (and all of them), measure and map; a difference is the own map's less this one's, by tile."""
    rows = [
        {"class": name, "measure": measure, "map": kind} | _compared(own[there], values[there], _some(groups, there))
        for name, there in _classes_and_all(labels, classes)
        for measure in MEASURES
        for kind, frame in by_map.items()
        for own, values in [(by_map[OWN][measure].to_numpy(), frame[measure].to_numpy())]
    ]
    return pd.DataFrame(rows, columns=["class", "measure", "map", *MEANS, *DIFFERENCES])


def curve_areas(
    probabilities: NDArray[np.float64] | None, labels: Indices, classes: Sequence[str], groups: Groups
) -> pd.DataFrame:
    """One row a class (and all of them), fill, way and order: the area under the mean curve.

    Args:
        probabilities: as of `perturbation.Curves`; None: nothing was perturbed.
        labels: (N,) indices of `classes`.
        classes: all names.
        groups: (N,) indices of slides or patients, if known.
    """
    columns = ["class", "fill", "way", "order", *MEANS, *DIFFERENCES]
    if probabilities is None:
        return pd.DataFrame(columns=columns)
    areas = np.asarray(np.trapezoid(probabilities, SHARES, axis=-1))
    rows = [
        {"class": name, "fill": FILLS[fill], "way": WAYS[way], "order": ORDERS[order]}
        | _compared(areas[there, 0, fill, way], areas[there, order, fill, way], _some(groups, there))
        for name, there in _classes_and_all(labels, classes)
        for order, fill, way in np.ndindex(areas.shape[1:])
    ]
    return pd.DataFrame(rows, columns=columns)


def curve_points(
    probabilities: NDArray[np.float64] | None, labels: Indices, classes: Sequence[str], groups: Groups
) -> pd.DataFrame:
    """One row a class (and all of them), fill, way, order and share of the input."""
    columns = ["class", "fill", "way", "order", "share", *MEANS]
    if probabilities is None:
        return pd.DataFrame(columns=columns)
    rows = [
        {"class": name, "fill": FILLS[fill], "way": WAYS[way], "order": ORDERS[order], "share": SHARES[step]}
        | _mean(probabilities[there, order, fill, way, step], _some(groups, there))
        for name, there in _classes_and_all(labels, classes)
        for order, fill, way, step in np.ndindex(probabilities.shape[1:])
    ]
    return pd.DataFrame(rows, columns=columns)


def _classes_and_all(labels: Indices, classes: Sequence[str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Which tiles are of each class that has some, and of all."""
    yield ALL, np.ones(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        there = labels == label
        if there.any():
            yield name, there


def _some(groups: Groups, there: NDArray[np.bool_]) -> Groups:
    return None if groups is None else groups[there]


def _mean(values: NDArray[np.float64], groups: Groups) -> dict[str, Any]:
    found = mean(values, groups, SPAN)
    return dict(zip(MEANS, (found.tiles, found.units, found.value, found.low, found.high), strict=True))


def _compared(own: NDArray[np.float64], values: NDArray[np.float64], groups: Groups) -> dict[str, Any]:
    """The mean of `values`, and of how much `own` is above them, on tiles where both are defined."""
    above = mean(own - values, groups)
    differences = dict(zip(DIFFERENCES, (above.value, above.low, above.high), strict=True))
    return _mean(values, groups) | differences
