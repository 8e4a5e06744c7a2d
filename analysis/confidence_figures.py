"""Draws whether confidence can be believed, and precision against recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.calibration import Reliability, Selective
from analysis.figures import (
    COLOURS,
    DASHED,
    DOTTED,
    GREY,
    GRID,
    INK,
    LINES,
    MOST_POINTS,
    SOLID,
    STYLED,
    new_figure,
    thinned,
)
from analysis.scores import PrecisionRecall


@STYLED
def reliability(curves: Mapping[str, Reliability], title: str) -> Figure:
    """Accuracy against confidence with Wilson intervals, a line for each of `curves` (by label), and how many tiles."""
    figure, axes = new_figure(5.2, 5.2, title)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", zorder=0)
    for (label, curve), colour, marker, dash in zip(curves.items(), COLOURS, "os", (SOLID, DASHED), strict=False):
        axes.plot(curve.confidence, curve.accuracy, color=colour, ls=dash, lw=1.2, zorder=2, label=label)
        axes.vlines(curve.confidence, curve.low, curve.high, color=colour, lw=0.9, alpha=0.6)
        size = 10 + 70 * np.sqrt(curve.tiles / curve.tiles.max())
        axes.scatter(curve.confidence, curve.accuracy, s=size, color=colour, marker=marker, zorder=3, alpha=0.85, lw=0)
    axes.set(xlabel="confidence (highest probability)", ylabel="accuracy", box_aspect=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(color=GRID, lw=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@STYLED
def selective(curve: Selective, title: str) -> Figure:
    """Accuracy among the most certain tiles, against their share."""
    figure, axes = new_figure(5.2, 3.9, title)
    places = np.unique(np.linspace(0, len(curve.coverage) - 1, MOST_POINTS).round().astype(int))
    axes.plot(curve.coverage[places], curve.accuracy[places], color=COLOURS[0], lw=1.6)
    low = min(0.9, float(np.quantile(curve.accuracy, 0.02)) - 0.02)
    axes.set(xlabel="coverage: share of the tiles, the most certain first", ylabel="accuracy among them")
    axes.set(xlim=(0, 1.01), ylim=(max(0.0, low), 1.005))
    axes.grid(color=GRID, lw=0.6)
    return figure


@STYLED
def precision_recall(
    curves: Sequence[PrecisionRecall], micro: PrecisionRecall, names: Sequence[str], title: str
) -> Figure:
    """One-vs-rest curves of each class, the ten of lowest average precision in colours, and the micro curve."""
    figure, axes = new_figure(5.2, 5.9, title)
    defined = [index for index, curve in enumerate(curves) if not np.isnan(curve.average)]
    worst = sorted(sorted(defined, key=lambda index: curves[index].average)[: len(LINES)])
    for index in sorted(set(defined) - set(worst)):
        axes.step(*thinned(curves[index].recall, curves[index].precision), where="pre", color="#d5dae0", lw=0.7)
    for (colour, dash), index in zip(LINES, worst, strict=False):
        label = f"{names[index]}  {curves[index].average:.4f}"
        thin = thinned(curves[index].recall, curves[index].precision)
        axes.step(*thin, where="pre", color=colour, ls=dash, lw=1.5, label=label)
    if not np.isnan(micro.average):
        thin = thinned(micro.recall, micro.precision)
        axes.step(*thin, where="pre", color=INK, ls=DOTTED, lw=1.8, label=f"micro  {micro.average:.4f}")
    if len(worst) < len(defined):
        axes.plot([], [], color="#d5dae0", lw=0.9, label=f"{len(defined) - len(worst)} classes of higher AP")
    axes.set(xlabel="recall", ylabel="precision", box_aspect=1, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(color=GRID, lw=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
