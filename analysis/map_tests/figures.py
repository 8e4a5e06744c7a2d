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
from analysis.map_tests.perturbation import CENTRE, FILLS, ORDERS, SMOOTH, WAYS
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
def curves(points: pd.DataFrame, title: str, name: str = ALL) -> Figure:
    """Deletion and insertion with both fills: mean probability and its 95 % interval, by the order of taking.

    Args:
        points: `MapTests.curves`, not empty.
        title: what it is of.
        name: a class, or all.
    """
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=9.5, parse_math=False)
    panes = figure.subplots(len(WAYS), len(FILLS), sharex=True, sharey=True)
    of_class = points[points["class"] == name]
    for row, way in enumerate(WAYS):
        for column, fill in enumerate(FILLS):
            _curve(panes[row, column], of_class[(of_class["way"] == way) & (of_class["fill"] == fill)])
            panes[row, column].set_title(f"{way}, {fill}", size=9)
        panes[row, 0].set_ylabel("probability of the class")
    for axes in panes[-1]:
        axes.set_xlabel("share of the input taken (deletion) or given (insertion)")
    panes[0, 0].set(xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.legend(*panes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curve(axes: Axes, points: pd.DataFrame) -> None:
    for order in ORDERS:
        line = points[points["order"] == order].sort_values("share")
        colour, dash = ORDER_STYLES[order]
        axes.fill_between(line["share"], line["low"], line["high"], color=colour, alpha=0.12, lw=0)
        axes.plot(line["share"], line["value"], color=colour, ls=dash, lw=1.6, label=order)
    axes.grid(color=GRID, lw=0.6)
