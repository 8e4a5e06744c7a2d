"""What the source files of each class were like: what differs between classes but tissue is a shortcut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, mannwhitneyu

from analysis.audit.findings import WARNING, Finding
from analysis.audit.measure import Measures
from analysis.audit.sets import Sets
from trainer.wording import joined

PROPERTIES = {
    "size": "the source files' size in pixels",
    "mode": "the colour mode",
    "format": "the file format",
    "compression": "the compression",
}
ASSOCIATION, CHANCE = 0.1, 0.001
"""Cramér's V and the probability of chance from which a property is said to differ by class."""
LEAST, PLAIN = 10, 0.9
"""Tiles of a class, and the AUC from which their JPEG grid is said to be another."""


def describe_files(sets: Sets, measures: Measures) -> pd.DataFrame:
    """One row a store and class: `store` (its path), `class, tiles`; the source files' `size, mode, format` and
    `compression` with the share of tiles of each; the median of their `bytes`; median `blockiness at the corner` and
    `blockiness at any offset` (see `blockiness.blockiness`)."""
    rows = []
    properties = _properties(sets.tiles)
    cells = sets.tiles.groupby(["store", "label"]).ngroup().to_numpy()
    for cell in range(cells.max() + 1):
        members = np.flatnonzero(cells == cell)
        corner, anywhere = np.median(measures.blockiness[members], axis=0)
        rows.append(
            {
                "store": str(sets.stores[sets.tiles["store"].iloc[members[0]]].path),
                "class": sets.tiles["label"].iloc[members[0]],
                "tiles": len(members),
                **{name: _shares(properties[name].iloc[members]) for name in PROPERTIES},
                "bytes": float(sets.tiles["source_bytes"].iloc[members].median()),
                "blockiness at the corner": float(corner),
                "blockiness at any offset": float(anywhere),
            }
        )
    return pd.DataFrame(rows)


def judge_files(sets: Sets, measures: Measures) -> Iterator[Finding]:
    """Properties of files that go with the class, within each store."""
    yield from _judge_grids(sets, measures)
    properties = _properties(sets.tiles)
    for place, store in enumerate(sets.stores):
        of_store = (sets.tiles["store"] == place).to_numpy() & sets.is_labelled
        labels = sets.tiles["label"][of_store]
        for name, wording in PROPERTIES.items():
            values = properties[name][of_store]
            association, chance = _association(labels, values)
            if association >= ASSOCIATION and chance < CHANCE:
                each = joined(f"{label} {_shares(values[labels == label])}" for label in sorted(labels.unique()))
                text = f"in {store.path.name} {wording} differs by class (Cramér's V {association:.2f}): {each}"
                yield Finding(WARNING, "files", text)


def _judge_grids(sets: Sets, measures: Measures) -> Iterator[Finding]:
    """Classes whose JPEG grid is plainly another than that of the other classes in their store.

    One class of many can be told by it, and a regression over all of them is still near chance.
    """
    for place, store in enumerate(sets.stores):
        of_store = np.flatnonzero((sets.tiles["store"] == place).to_numpy() & sets.is_labelled)
        labels = sets.tiles["label"].to_numpy()[of_store]
        for name in sorted(set(labels)):
            inside = labels == name
            if min(inside.sum(), (~inside).sum()) < LEAST:
                continue
            areas = [_area(measures.blockiness[of_store, column], inside) for column in (0, 1)]
            column = int(np.argmax(np.abs(np.subtract(areas, 0.5))))
            if abs(areas[column] - 0.5) < PLAIN - 0.5:
                continue
            grid = measures.blockiness[of_store, column]
            stronger = "stronger" if areas[column] > 0.5 else "weaker"
            yield Finding(
                WARNING,
                "files",
                f"in {store.path.name} tiles of {name} have a {stronger} 8-pixel grid than those of the other classes "
                f"(median {np.median(grid[inside]):.2f} against {np.median(grid[~inside]):.2f}; it alone tells them "
                f"apart with an AUC of {max(areas[column], 1 - areas[column]):.2f}): they were compressed as JPEG in "
                "another way, which a network can learn in the place of tissue",
            )


def _area(values: NDArray[np.floating], inside: NDArray[np.bool_]) -> float:
    """The chance that a value of those inside is higher than one of the others."""
    return float(mannwhitneyu(values[inside], values[~inside]).statistic / (inside.sum() * (~inside).sum()))


def _properties(tiles: pd.DataFrame) -> pd.DataFrame:
    size = tiles["width"].astype(str) + " x " + tiles["height"].astype(str)
    return tiles[["mode", "format", "compression"]].fillna("not said").astype(str).assign(size=size)


def _shares(values: pd.Series) -> str:
    """`JPEG`, or `JPEG 80 %, PNG 20 %`."""
    shares = values.value_counts(normalize=True)
    return (
        str(shares.index[0]) if len(shares) == 1 else ", ".join(f"{each} {share:.0%}" for each, share in shares.items())
    )


def _association(labels: pd.Series, values: pd.Series) -> tuple[float, float]:
    """Cramér's V of two properties, and the probability of the like by chance (chi-square, tiles independent)."""
    table = pd.crosstab(labels, values).to_numpy()
    if min(table.shape) < 2:
        return 0.0, 1.0
    statistic, chance, *_ = chi2_contingency(table, correction=False)
    return float(np.sqrt(statistic / (table.sum() * (min(table.shape) - 1)))), float(chance)
