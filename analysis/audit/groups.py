"""Slides or patients, and which sets they have tiles in."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.audit.findings import NOTE, PROBLEM, WARNING, Finding
from analysis.audit.sets import Sets
from analysis.kinds import TILE_LEVEL
from trainer.wording import counted, joined


def count_groups(sets: Sets) -> pd.DataFrame:
    """One row a group and set: `store` (its place), `group, set, tiles, classes`."""
    known = sets.tiles[sets.tiles["group"].notna()].assign(label=sets.tiles["label"].where(sets.is_labelled))
    counted_rows = known.groupby(["store", "group", "set"], sort=False).agg(
        tiles=("tile_id", "size"), classes=("label", "nunique")
    )
    return counted_rows.reset_index()


def judge_groups(sets: Sets, groups: pd.DataFrame) -> Iterator[Finding]:
    """Groups on both sides of a split, names that two stores share, classes of one group, and groups unknown."""
    yield from _on_both_sides(sets, groups)
    yield from _in_two_stores(sets, groups)
    yield from _classes_of_one_group(sets)
    unknown = [name for name in sets.names if sets.tiles["group"][sets.of(name)].isna().any()]
    if unknown:
        text = (
            f"slide or patient are unknown of tiles in {joined(unknown)}: whether one has tiles in two sets was not "
            "examined for them, and intervals that take their tiles for independent are too narrow"
        )
        yield Finding(WARNING if sets.kind == TILE_LEVEL else NOTE, "groups", text)


def _on_both_sides(sets: Sets, groups: pd.DataFrame) -> Iterator[Finding]:
    """Within a store a name is a slide or patient, beyond doubt."""
    inside = [
        name for name in sets.names if name == sets.training or (name in sets.tested and name not in sets.external)
    ]
    members = {name: set(groups.loc[groups["set"] == name, "group"]) for name in inside}
    for later, name in enumerate(inside):
        for earlier in inside[:later]:
            both = members[name] & members[earlier]
            if both:
                tiles = int((sets.of(name) & sets.tiles["group"].isin(both).to_numpy()).sum())
                text = (
                    f"{counted(len(both), 'group')} of {earlier} ({joined(sorted(map(str, both)))}) "
                    f"{'has' if len(both) == 1 else 'have'} {counted(tiles, 'tile')} in {name} too"
                )
                is_leak = earlier == sets.training and not sets.is_made
                yield Finding(PROBLEM if is_leak else WARNING, "groups", text)


def _in_two_stores(sets: Sets, groups: pd.DataFrame) -> Iterator[Finding]:
    """Between stores a name may be a coincidence."""
    inside = set(groups.loc[~groups["set"].isin(sets.external), "group"])
    for name in sets.external:
        both = inside & set(groups.loc[groups["set"] == name, "group"])
        if both:
            text = (
                f"{counted(len(both), 'group')} of {name} {'has' if len(both) == 1 else 'have'} the name of one in the "
                f"training store ({joined(sorted(map(str, both)))}): is it the same slide or patient?"
            )
            yield Finding(WARNING, "groups", text)


def _classes_of_one_group(sets: Sets) -> Iterator[Finding]:
    """A class that a single slide stands for cannot be told from that slide."""
    if sets.training is None:
        return
    learned = sets.tiles[sets.of(sets.training) & sets.is_labelled]
    if learned["group"].isna().any() or learned["group"].nunique() < 2:
        return
    each = learned.groupby("label")["group"].agg(["nunique", "first"])
    for label, group in each.loc[each["nunique"] == 1, "first"].items():
        text = f"all tiles of {label} in {sets.training} are of one group ({group}): what is learned may be that slide"
        yield Finding(WARNING, "groups", text)
