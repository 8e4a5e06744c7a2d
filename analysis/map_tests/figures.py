"""Draws what was measured of maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figures import COLOURS, DASHED, DOTTED, GREY, GRID, INK, PALE, SOLID, STYLED
from analysis.map_tests.names import ALL, CHANCE, FIBRES_RHO, GLASS, HEAD, NUCLEI_RHO, OTHER, OWN, TRUNKS, TURNED
from analysis.map_tests.perturbation import CENTRE, DELETION, FILLS, INSERTION, ORDERS, SMOOTH, WAYS
from analysis.map_tests.perturbation import OWN as OWN_ORDER

SHOWN = {
    NUCLEI_RHO: "rank correlation with nuclear area",
    FIBRES_RHO: "rank correlation with coherence",
    GLASS: "heat less area on glass",
}
NULL_MARKERS = {
    TURNED: ("turned", "D", COLOURS[1]),
    OTHER: ("another class's", "s", COLOURS[2]),
    HEAD: ("untrained head", "^", COLOURS[3]),
    TRUNKS[0]: ("untrained from layer4 on", "x", COLOURS[9]),
    TRUNKS[-1]: ("untrained from conv1 on", "+", COLOURS[9]),
}
SHARE_OF = {DELETION: "of the input taken", INSERTION: "of the input given"}
BETTER = {DELETION: "left of 0", INSERTION: "right of 0"}
ORDER_STYLES = {
    OWN_ORDER: (COLOURS[0], SOLID),
    SMOOTH: (COLOURS[9], DASHED),
    CENTRE: (COLOURS[1], DOTTED),
}


@STYLED
def associations(found: pd.DataFrame, classes: Sequence[str], codes: Sequence[str], title: str) -> Figure:
    """For each class what its maps agree with, with 95 % intervals, beside what maps that know nothing reach.

    Args:
        found: `MapTests.associations`.
        classes: names as in the table.
        codes: the same, as a figure can show them.
        title: what it is of.
    """
    rows = [*zip(classes, codes, strict=True), (ALL, ALL)]
    figure = Figure(figsize=(10.4, 1.9 + 0.38 * len(rows)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=9.5, parse_math=False)
    panes = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, measure in zip(panes, SHOWN, strict=True):
        _association(axes, found[found["measure"] == measure].set_index(["class", "map"]), measure, rows)
    panes[0].set_yticks(range(len(rows)), [code for _, code in rows])
    panes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _association(axes: Axes, table: pd.DataFrame, measure: str, rows: Sequence[tuple[str, str]]) -> None:
    places = {name: place for place, (name, _) in enumerate(rows) if name in table.index.get_level_values(0)}
    axes.axvline(CHANCE[measure], color=GREY, lw=0.9, zorder=0)
    axes.axhline(len(rows) - 1.5, color=PALE, lw=0.7)
    heights = list(places.values())

    def values(kind: str, column: str) -> NDArray[np.float64]:
        return table[column].reindex([(name, kind) for name in places]).to_numpy(dtype=np.float64)

    for null, (label, marker, colour) in NULL_MARKERS.items():
        axes.plot(
            values(null, "value"), heights, ls="", marker=marker, ms=5, mfc="none", mec=colour, mew=1.1, label=label
        )
    axes.hlines(heights, values(OWN, "low"), values(OWN, "high"), color=INK, lw=1.6)
    axes.plot(values(OWN, "value"), heights, ls="", marker="o", ms=6, color=INK, label="own map, 95 % interval")
    axes.set(xlabel=SHOWN[measure])
    axes.grid(axis="y", color=GRID, lw=0.6)
    axes.tick_params(axis="y", length=0)


@STYLED
def curves(points: pd.DataFrame, areas: pd.DataFrame, title: str, name: str = ALL) -> Figure:
    """Deletion and insertion with both fills: mean probability by the order of taking, and whether the areas differ.

    The orders are of the same tiles, so intervals of each curve, which hold the spread of the tiles, would say nothing
    of their difference; intervals are of the difference itself.

    Args:
        points: `MapTests.curves`, not empty.
        areas: `MapTests.areas`.
        title: what it is of.
        name: a class, or all.
    """
    figure = Figure(figsize=(10.4, 6.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=9.5, parse_math=False)
    panes = figure.subplots(len(WAYS), len(FILLS) + 1)
    of_class, its_areas = (table[table["class"] == name] for table in (points, areas))
    for row, way in enumerate(WAYS):
        for column, fill in enumerate(FILLS):
            axes = panes[row, column]
            _curve(axes, of_class[(of_class["way"] == way) & (of_class["fill"] == fill)])
            axes.set_title(f"{way}, {fill}", size=9)
            axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel=f"share {SHARE_OF[way]}")
        panes[row, 0].set_ylabel("probability of the class")
        _differences(panes[row, -1], its_areas[its_areas["way"] == way], way)
    figure.legend(*panes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curve(axes: Axes, points: pd.DataFrame) -> None:
    for order in ORDERS:
        line = points[points["order"] == order].sort_values("share")
        colour, dash = ORDER_STYLES[order]
        axes.plot(line["share"], line["value"], color=colour, ls=dash, lw=1.6, label=order)
    axes.grid(color=GRID, lw=0.6)


def _differences(axes: Axes, areas: pd.DataFrame, way: str) -> None:
    """The own map's area less that of each other order, with the 95 % interval where there is one."""
    pairs = [(fill, order) for fill in FILLS for order in (SMOOTH, CENTRE)]
    for place, (fill, order) in enumerate(pairs):
        row = areas[(areas["fill"] == fill) & (areas["order"] == order)]
        [[value, low, high]] = row[["difference", "difference_low", "difference_high"]].to_numpy(dtype=np.float64)
        colour, _ = ORDER_STYLES[order]
        axes.hlines(place, low, high, color=colour, lw=1.6)
        axes.plot(value, place, ls="", marker="o", ms=6, color=colour)
    axes.axvline(0, color=GREY, lw=0.9, zorder=0)
    axes.set_yticks(range(len(pairs)), [f"{fill}:\nless {order}" for fill, order in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_title(f"{way}: own map's area less another's", size=9)
    intervals = "95 % interval" if areas["difference_low"].notna().any() else "too few for an interval"
    axes.set_xlabel(f"{intervals}; own map better {BETTER[way]}")
    axes.grid(axis="y", color=GRID, lw=0.6)
    axes.tick_params(axis="y", length=0)
