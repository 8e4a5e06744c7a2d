"""How many tiles and groups each class has in each set."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.audit.findings import NOTE, WARNING, Finding
from analysis.audit.sets import Sets
from trainer.wording import joined

FEW_TILES = 20
IMBALANCE = 10
"""From this ratio of the largest class to the smallest on, accuracy says little of the small ones."""


def count_classes(sets: Sets) -> pd.DataFrame:
    """One row a class: `class`, then for each set `NAME tiles` and `NAME groups` (0 where groups are unknown)."""
    labels = [*sets.classes, *sorted(set(sets.tiles["label"]) - set(sets.classes))]
    columns = {}
    for name in sets.names:
        of_class = sets.tiles[sets.of(name)].groupby("label")
        columns[f"{name} tiles"] = of_class.size().reindex(labels, fill_value=0)
        columns[f"{name} groups"] = of_class["group"].nunique().reindex(labels, fill_value=0)
    return pd.DataFrame(columns, index=labels).rename_axis("class").reset_index()


def judge_classes(sets: Sets, classes: pd.DataFrame) -> Iterator[Finding]:
    """Classes without tiles, with few, and many times more of one than of another."""
    known = classes[classes["class"].isin(sets.classes)].set_index("class")
    for name in sets.names:
        tiles = known[f"{name} tiles"]
        if not sets.is_labelled[sets.of(name)].any():
            continue
        if absent := list(tiles.index[tiles == 0]):
            yield Finding(WARNING, "classes", f"{name} has no tile of {joined(absent)}: nothing is known of it there")
        if few := [f"{label} ({count})" for label, count in tiles[(tiles > 0) & (tiles < FEW_TILES)].items()]:
            text = f"{name} has fewer than {FEW_TILES} tiles of {joined(few)}: their scores say little"
            yield Finding(NOTE, "classes", text)
        there = tiles[tiles > 0]
        if len(there) > 1 and there.max() >= IMBALANCE * there.min():
            text = (
                f"{name} has {there.max() / there.min():.0f} times as many tiles of {there.idxmax()} as of "
                f"{there.idxmin()}: read the balanced accuracy, not the accuracy"
            )
            yield Finding(NOTE, "classes", text)
    if len(sets.classes) == 1:
        yield Finding(WARNING, "classes", "there is one class alone: nothing can be told apart")
