"""What was measured of maps, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.bootstrap import FEW
from analysis.map_tests.names import (
    ALL,
    BORDER,
    CENTRED,
    CHANCE,
    FIBRES_AUROC,
    FIBRES_RHO,
    GLASS,
    HEAD,
    LIKENESS,
    NUCLEI_AUROC,
    NUCLEI_RHO,
    NULLS,
    OTHER,
    OWN,
    SHIFTED,
    TRUNKS,
    TURNED,
)
from analysis.map_tests.perturbation import BLURRED, DELETION, INSERTION, SMOOTH, STEPS
from analysis.scores import Interval
from trainer.model import STAGES
from trainer.tiles.colour import GLASS as GLASS_DENSITY
from trainer.wording import counted

CLAIMS = {"LYM": NUCLEI_RHO, "TUM": NUCLEI_RHO, "MUS": FIBRES_RHO, "STR": FIBRES_RHO}
"""What heat is often said to fall on, by the class codes of NCT-CRC-HE-100K."""
WHAT = {NUCLEI_RHO: "nuclei", FIBRES_RHO: "aligned fibres"}
AUROC = {NUCLEI_RHO: (NUCLEI_AUROC, "best nuclei AUROC"), FIBRES_RHO: (FIBRES_AUROC, "best fibres AUROC")}
AVOIDS_GLASS = "heat avoids glass"
BORNE_OUT, NO_MORE, NOT_SHOWN, CONTRADICTED, OPEN = (
    "borne out",
    "more than chance, not more than every null",
    "not shown",
    "contradicted",
    "left open",
)
SAID = {
    BORNE_OUT: "That {} is borne out on these tiles.",
    NO_MORE: "That {} is more than chance, but not more than in every null, so it need not be what was learned.",
    NOT_SHOWN: "That {} is not shown by these tiles.",
    CONTRADICTED: "That {} is contradicted on these tiles.",
    OPEN: "Whether {} is left open: a single slide or patient tells nothing of others.",
}
"""What is said of a claim, by its verdict."""
SHORT = {TURNED: "turned maps", OTHER: "other classes' maps", HEAD: "untrained heads"}
SIDES = {1: "above", 0: "not told from", -1: "below"}


class Row(NamedTuple):
    """One row of the table of associations."""

    tiles: int
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float

    @property
    def side(self) -> int:
        """1 where the own map's measure is above this one's, -1 where below, 0 where the interval holds both."""
        return int(self.difference_low > 0) - int(self.difference_high < 0)


Table = dict[tuple[str, str], Row]


def sentences(classes: Sequence[str], tiles: pd.DataFrame, found: pd.DataFrame, areas: pd.DataFrame) -> dict[str, str]:
    """For each class: what was measured, and whether it differs from the nulls."""
    return {name: " ".join(_of_class(name, tiles, found, areas)) for name in classes}


def _of_class(name: str, tiles: pd.DataFrame, found: pd.DataFrame, areas: pd.DataFrame) -> Iterator[str]:
    members = tiles[tiles["class"] == name]
    if members.empty:
        yield "There is no tile of this class."
        return
    empty = int(members["empty"].sum())
    said = f", {empty} with a map that is zero everywhere and left out" if empty else ""
    groups = f" of {counted(members['group'].nunique(), 'group')}" if members["group"].notna().all() else ""
    yield f"{counted(len(members), 'tile')}{groups}{said}."
    if empty == len(members):
        return
    table, claimed = _table(found, name), CLAIMS.get(name)
    for measure in sorted(WHAT, key=lambda one: one != claimed):
        yield _association(measure, table, members)
        if measure == claimed:
            yield SAID[_verdict(measure, table, good=1)].format(_claim(measure))
    yield from _glass(table, members)
    yield from _deletion(areas[areas["class"] == name])


def _table(found: pd.DataFrame, name: str) -> Table:
    rows = found[found["class"] == name][["measure", "map", *Row._fields]]
    return {(measure, kind): Row(*rest) for measure, kind, *rest in rows.itertuples(index=False, name=None)}


def _association(measure: str, table: Table, members: pd.DataFrame) -> str:
    own, what = table[measure, OWN], WHAT[measure].capitalize()
    if not own.tiles:
        return f"{what}: the same in every cell of each tile, so nothing can be said."
    auroc, best = AUROC[measure]
    most = members.loc[~members["empty"], best].mean()
    return (
        f"{what}: rank correlation {_interval(own)}, AUROC {_interval(table[auroc, OWN])} of at most {most:.2f}"
        f"{_against(measure, table)}."
    )


def _against(measure: str, table: Table) -> str:
    """The nulls that the own map's measure lies above, is not told from, or lies below."""
    if np.isnan(table[measure, OWN].low):
        return ""
    parts = {side: [null for null in NULLS if table[measure, null].side == side] for side in SIDES}
    return "".join(f"; {SIDES[side]} {_listed(some)}" for side, some in parts.items() if some)


def _listed(some: Sequence[str]) -> str:
    if len(some) == len(NULLS):
        return "every null"
    trunks = [stage for stage, name in zip(reversed(STAGES[:-1]), TRUNKS, strict=True) if name in some]
    names = [SHORT[null] for null in some if null in SHORT]
    return ", ".join([*names, f"trunks untrained from {'/'.join(trunks)} on"] if trunks else names)


def claims(classes: Sequence[str], found: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: of which class and what, the own map's measure with its interval, the null that comes nearest
    to it (or beats it by most), and the verdict.

    Args:
        classes: all names; those of `CLAIMS` are said to have heat on something, any to have none on glass.
        found: of `associations`.
    """
    rows = [row for name in classes for row in _claims_of_class(name, _table(found, name))]
    return pd.DataFrame(rows, columns=["class", "claim", "measure", "own map", "best null", "verdict"])


def _claims_of_class(name: str, table: Table) -> Iterator[dict[str, object]]:
    claimed = CLAIMS.get(name)
    judged = [(claimed, _claim(claimed), "rank correlation", 1)] if claimed else []
    for measure, claim, unit, good in [*judged, (GLASS, AVOIDS_GLASS, "heat less area", -1)]:
        if (measure, OWN) in table and table[measure, OWN].tiles:
            own = table[measure, OWN]
            yield {
                "class": name,
                "claim": claim,
                "measure": unit,
                "own map": Interval(own.value, own.low, own.high, float("nan")),
                "best null": _best_null(measure, table, good),
                "verdict": _verdict(measure, table, good=good),
            }


def _claim(measure: str) -> str:
    return f"heat falls on {WHAT[measure]}"


def _best_null(measure: str, table: Table, good: int) -> str | None:
    """The null that the own map is least ahead of, tile by tile, and its value."""
    there = [null for null in NULLS if not np.isnan(table[measure, null].difference)]
    if not there:
        return None
    best = min(there, key=lambda null: good * table[measure, null].difference)
    return f"{_listed([best])} {table[measure, best].value:.3f}"


def _verdict(measure: str, table: Table, *, good: int) -> str:
    """Whether a claim is borne out: on its side of chance and of every null; `good` is 1 if that is above."""
    own, chance = table[measure, OWN], CHANCE[measure]
    side = int(own.low > chance) - int(own.high < chance)
    if np.isnan(own.low):
        return OPEN
    if side == -good:
        return CONTRADICTED
    if side == 0:
        return NOT_SHOWN
    return BORNE_OUT if all(table[measure, null].side == good for null in NULLS) else NO_MORE


def _glass(table: Table, members: pd.DataFrame) -> Iterator[str]:
    own, edge = table[GLASS, OWN], table[BORDER, OWN]
    if own.tiles:
        yield (
            f"Glass ({members['glass'].mean():.0%} of the area; {counted(own.tiles, 'tile')} with both glass and "
            f"tissue): heat less area {_points(own)}{_against(GLASS, table)}."
        )
        yield SAID[_verdict(GLASS, table, good=-1)].format(AVOIDS_GLASS)
    else:
        yield "Glass: no tile has both glass and tissue."
    if edge.tiles:
        yield f"Border cells: heat less area {_points(edge)}."


def _deletion(areas: pd.DataFrame) -> Iterator[str]:
    """Blurred fill, against random maps; the other curves are in the tables."""
    there = areas[(areas["order"] == SMOOTH) & (areas["fill"] == BLURRED)].set_index("way")
    if not len(there):
        return
    found = {way: Row(*there.loc[way, list(Row._fields)]) for way in (DELETION, INSERTION)}
    parts = [_curve(way, found[way], good) for way, good in ((DELETION, -1), (INSERTION, 1))]
    yield f"Area less that of random maps ({counted(int(found[DELETION].tiles), 'tile')}, blurred): {'; '.join(parts)}."


def _curve(way: str, row: Row, good: int) -> str:
    if np.isnan(row.difference_low):
        return f"{way} {row.difference:+.3f} (no interval)"
    said = {good: "better", -good: "worse", 0: "not told apart"}[row.side]
    return f"{way} {row.difference:+.3f} ({row.difference_low:+.3f} to {row.difference_high:+.3f}), {said}"


def _interval(row: Row) -> str:
    if np.isnan(row.low):
        return f"{row.value:.2f} (no interval)"
    return f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"


def _points(row: Row) -> str:
    """Shares as percentage points."""
    if np.isnan(row.low):
        return f"{100 * row.value:+.1f} points (no interval)"
    return f"{100 * row.value:+.1f} points ({100 * row.low:+.1f} to {100 * row.high:+.1f})"


def notes(
    tiles: pd.DataFrame,
    found: pd.DataFrame,
    grid: tuple[int, int],
    threshold: float,
    perturbed: int,
    *,
    by_group: bool,
) -> Iterator[str]:
    """How it was measured, and what that leaves open."""
    yield (
        f"Measured on {len(tiles):,} tiles, drawn at random from each class: the map of the tile's own class, "
        f"{grid[0]} x {grid[1]} cells, whether it was classified right ({int(tiles['right'].sum()):,} were) or not. "
        f"Maps that are zero everywhere: {int(tiles['empty'].sum()):,}, left out of all that follows."
    )
    few = int(tiles.groupby("class", observed=True)["group"].nunique().min())
    unit = "groups (slides or patients)" if by_group else "tiles"
    yield (
        f"Intervals are 95 %, by bootstrap over {unit}, and of fewer than {FEW} of them Student's. Each holds "
        "for itself: of twenty comparisons with nothing behind them, one is expected to look like a difference."
    )
    if not by_group:
        yield "Groups are not known: where tiles of one slide are alike, the intervals are too narrow."
    elif few < FEW:
        yield f"The class with the fewest has {counted(few, 'group')}: its intervals are wide, and rest on few."
    if np.isnan(threshold):
        yield "There is no tissue, or only of one colour, so no pixel counts as nuclear."
    yield (
        f"Nuclei: more haematoxylin than {threshold:.3f} (optical density, log10; Ruifrok's matrix), one threshold for "
        "all tiles (Otsu's, over their tissue). Pigment and dark debris count as well, and a stain other than the "
        "matrix's comes apart wrongly. Aligned fibres: coherence of the structure tensor of eosin. Glass: no channel "
        f"absorbs {GLASS_DENSITY}. AUROC: the chance that a nuclear pixel lies in a hotter cell than another pixel (of "
        "fibres: pixels weighed by coherence); at most what a map of the nuclei themselves would have."
    )
    yield (
        "Nulls: the own map turned by 90, 180 and 270 degrees; maps of all other classes; five untrained heads; and "
        "those on trunks untrained from a stage on (Adebayo et al. 2018). What untrained trunks reach as well was not "
        "learned."
    )
    yield from _variants(_table(found, ALL))
    if perturbed:
        yield (
            f"Deletion and insertion (Petsiuk et al. 2018) on {counted(perturbed, 'tile')}, {STEPS} steps: a good "
            "map has a small area in deletion and a large one in insertion. The network was not trained on pictures "
            "that are partly blurred or of one colour."
        )


def _variants(table: Table) -> Iterator[str]:
    """Other maps of the same network, over all classes."""
    same, shifted = table[LIKENESS, CENTRED], table[NUCLEI_RHO, SHIFTED]
    if same.tiles:
        yield f"Maps centred over the classes have a rank correlation with the plain ones of {_interval(same)}."
    likeness = [(kind, table[LIKENESS, kind]) for kind in (HEAD, *TRUNKS)]
    if all(row.tiles for _, row in likeness):
        each = ", ".join(f"{kind} {_interval(row)}" for kind, row in likeness)
        yield f"Rank correlation with the own map, which is to fall as more is untrained: {each}."
    if shifted.tiles:
        yield (
            "With cells taken half a cell further up and left, where gradients of an untrained network say that they "
            f"look, the rank correlation with nuclei is {_interval(shifted)} in place of "
            f"{_interval(table[NUCLEI_RHO, OWN])}."
        )
