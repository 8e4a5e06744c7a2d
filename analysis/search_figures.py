"""Draws what a search found: scores by fields, by epochs and by cost, in colours that the colour-blind can tell apart.

Filled points are trials that are done, hollow ones have seen fewer epochs, crosses have no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.fields import FEW, Field
from analysis.figures import COLOURS, DASHED, GREY, GRID, INK, SOLID, STYLED, new_figure
from analysis.scores import Floats
from analysis.search import BALANCED_ACCURACY, Search, Trial

MARKERS = "osD^vP*X<>"
BROKEN = ("diverged", "failed")
BINS = 6
"""Into so many parts a map divides an interval."""
LONGEST = 14
"""Characters of a value in a figure."""
SPREAD = 10.0
"""Costs that differ by more than this factor stand on a logarithmic axis."""


@dataclass(frozen=True)
class Group:
    """Trials that share a colour, since they share a value."""

    label: str
    colour: str
    marker: str
    trials: list[Trial]


def main_fields(fields: Sequence[Field]) -> tuple[Field, Field | None]:
    """The field for the axis, and the one for the colours: learning rate and depth, or what comes nearest to them."""
    by_axis = sorted(fields, key=lambda field: (field.key != "optim.lr", field.scale != "log", bool(field.values)))
    axis = by_axis[0]
    few = [field for field in fields if field is not axis and 0 < len(field.values) <= FEW]
    return axis, next(iter(sorted(few, key=lambda field: field.key != "model.unfrozen_depth")), None)


def score_name(search: Search) -> str:
    """What trials are chosen by, in words."""
    return f"validation {search.metric.removeprefix('val/').replace('_', ' ')}"


@STYLED
def score_by_field(search: Search, axis: Field, by: Field | None, title: str) -> Figure:
    """The score of each trial against a field, with the interval of those that are done."""
    figure, axes = new_figure(5.2, 4.0, title)
    broken = False
    for group in _groups(search, by):
        for trial in group.trials:
            x = _on_axis(axis, trial)
            if trial.value is not None:
                _point(axes, x, trial, group)
                _interval(axes, x, search, trial, group)
            elif trial.status in BROKEN:
                broken = True
                axes.plot(
                    x, 0.02, marker="x", color=group.colour, transform=axes.get_xaxis_transform(), ls="", zorder=4
                )
    _ring(axes, search, lambda trial: _on_axis(axis, trial))
    _prepare(axes, axis)
    axes.set(xlabel=axis.label, ylabel=score_name(search))
    axes.grid(axis="y", color=GRID, lw=0.6)
    _legend(figure, search, by, broken=broken)
    return figure


@STYLED
def score_map(search: Search, axis: Field, other: Field, title: str) -> Figure:
    """The best score in each cell of two fields, and of how many trials it is."""
    columns, rows = _cells(axis), _cells(other)
    best: dict[tuple[int, int], list[float]] = {}
    for trial in search.trials:
        cell = (_cell(rows, other, trial), _cell(columns, axis, trial))
        if trial.value is not None and None not in cell:
            best.setdefault(cell, []).append(trial.value)  # type: ignore[arg-type]  # neither is None
    choose = max if search.larger_is_better else min
    values = np.full((len(rows), len(columns)), np.nan)
    for cell, found in best.items():
        values[cell] = choose(found)
    figure, axes = new_figure(5.2, 1.6 + 0.42 * max(3, len(rows)), title)
    shades = colormaps["viridis" if search.larger_is_better else "viridis_r"]
    image = axes.imshow(values, cmap=shades, aspect="auto", origin="lower")
    for (row, column), found in best.items():
        shade = np.array(image.to_rgba(values[row, column])[:3]) @ [0.299, 0.587, 0.114]
        text = f"{values[row, column]:.3f}" + (f"\n({len(found)})" if len(found) > 1 else "")
        axes.text(column, row, text, ha="center", va="center", size=7, color=INK if shade > 0.5 else "white")
    axes.set_xticks(range(len(columns)), [name for name, _, _ in columns])
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=7 if axis.values else 6.5)
    axes.set(xlabel=axis.label, ylabel=other.label)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label=score_name(search), pad=0.02, aspect=24)
    bar.outline.set_visible(False)
    return figure


@STYLED
def parallel_coordinates(search: Search, fields: Sequence[Field], title: str) -> Figure:
    """Each trial as a line over the searched fields to its score; the choice is drawn thick."""
    figure, axes = new_figure(10.8, 3.9, title)
    trials = [trial for trial in search.trials if trial.value is not None]
    scores = np.array([trial.value for trial in trials], dtype=np.float64)
    ends = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    shades = ScalarMappable(Normalize(*ends), "viridis" if search.larger_is_better else "viridis_r")
    for place in np.argsort(scores if search.larger_is_better else -scores):
        trial = trials[place]
        heights = [_height(field.position(trial.parameters.get(field.key)), field.ends) for field in fields]
        heights.append(_height(float(scores[place]), ends))
        chosen = search.choice is not None and trial.name == search.choice.cheapest
        style: dict[str, Any] = {"lw": 1.3, "alpha": 0.85} if trial.status == "done" else {"lw": 0.9, "alpha": 0.5}
        if chosen:
            axes.plot(heights, color=INK, lw=4.2, zorder=5)
            style = {"lw": 2.4, "zorder": 6}
        axes.plot(heights, color=shades.to_rgba(scores[place]), ls=SOLID if trial.status == "done" else DASHED, **style)
    for place, field in enumerate(fields):
        _vertical(axes, place, field)
    axes.axvline(len(fields), color=INK, lw=0.8)
    axes.set_xticks(range(len(fields) + 1), [*(field.label for field in fields), "score"])
    axes.set(ylim=(-0.06, 1.06), xlim=(-0.25, len(fields) + 0.1))
    axes.yaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=9, pad=8)
    bar = figure.colorbar(shades, ax=axes, label=score_name(search), pad=0.015, aspect=26)
    bar.outline.set_visible(False)
    return figure


@STYLED
def all_curves(search: Search, by: Field | None, title: str) -> Figure:
    """The score of every trial by epoch; the choice is drawn thick, where a trial ended early stands a hollow point."""
    figure, axes = new_figure(5.2, 4.0, title)
    many = len(search.trials) > 40
    for group in _groups(search, by):
        for trial in group.trials:
            epochs = [epoch["epoch"] for epoch in trial.history]
            values = [epoch.get(search.metric, np.nan) for epoch in trial.history]
            chosen = search.choice is not None and trial.name == search.choice.cheapest
            width, alpha = (2.6, 1.0) if chosen else (0.8, 0.45) if many else (1.1, 0.75)
            axes.plot(epochs, values, color=group.colour, lw=width, alpha=alpha, zorder=3 if chosen else 2)
            if epochs:
                _point(axes, epochs[-1], trial, group, values[-1])
    axes.set(xlabel="epoch", ylabel=score_name(search))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=GRID, lw=0.6)
    _legend(figure, search, by, choice=Line2D([], [], color=INK, lw=2.6, label="choice"))
    return figure


@STYLED
def importance_bars(shares: Mapping[str, float], title: str) -> Figure:
    """What each field explains of the scores' variance, and what only several together do."""
    names = [*(name.replace("_", " ") for name in shares), "several together"]
    values = [*shares.values(), max(0.0, 1 - sum(shares.values()))]
    figure, axes = new_figure(5.2, 1.4 + 0.36 * len(names), title)
    colours = [COLOURS[0]] * len(shares) + [GREY]
    bars = axes.barh(names, [100 * value for value in values], color=colours, height=0.62)
    axes.bar_label(bars, fmt="%.0f %%", padding=4, size=8)
    axes.invert_yaxis()
    axes.set(xlabel="% of the variance of the score", xlim=(0, 112))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    return figure


@STYLED
def cost(search: Search, by: Field | None, title: str) -> Figure:
    """The score of each trial against what it cost, and the best that was to be had for each cost."""
    figure, axes = new_figure(5.2, 4.0, title)
    trials = [trial for trial in search.trials if trial.value is not None and trial.worker_seconds > 0]
    for group in _groups(search, by):
        for trial in group.trials:
            if trial in trials:
                _point(axes, trial.worker_seconds, trial, group)
    front = _front(search, trials)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=GREY, lw=1.0, ls=DASHED, zorder=1)
    _ring(axes, search, lambda trial: trial.worker_seconds)
    costs = [trial.worker_seconds for trial in trials]
    if costs and max(costs) > SPREAD * min(costs):
        axes.set_xscale("log")
    axes.set(xlabel="worker-seconds", ylabel=score_name(search))
    axes.grid(color=GRID, lw=0.6)
    _legend(figure, search, by)
    return figure


def _front(search: Search, trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Costs and scores of the trials that no cheaper one beats (the Pareto front)."""
    sign = 1 if search.larger_is_better else -1
    front: list[tuple[float, float]] = []
    points = [(trial.worker_seconds, trial.value) for trial in trials if trial.value is not None]
    for spent, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((spent, value))
    return front


def _groups(search: Search, by: Field | None) -> list[Group]:
    """The trials by the value of a field; without one all of them together."""
    if by is None:
        return [Group("", COLOURS[0], "o", list(search.trials))]
    styles = zip(by.values, COLOURS, MARKERS, strict=False)
    return [
        Group(
            label(by, value),
            colour,
            marker,
            [trial for trial in search.trials if by.key in trial.parameters and trial.parameters[by.key] == value],
        )
        for value, colour, marker in styles
    ]


def label(field: Field, value: object) -> str:
    """A value short and plain enough for a figure (no font has every script); else its place, as #2."""
    text = field.text(value)
    if not text.isascii() or not text.isprintable():
        return f"#{field.values.index(value) + 1}"
    short = text if len(text) <= LONGEST else "…" + text[1 - LONGEST :]
    return short.replace("$", r"\$")  # no mathematics


def _on_axis(field: Field, trial: Trial) -> float:
    """Where a trial stands on an axis whose scale is that of the field."""
    position = field.position(trial.parameters.get(field.key))
    return float(10**position) if field.scale == "log" else position


def _prepare(axes: Axes, field: Field) -> None:
    """Gives the horizontal axis the scale and the ticks of a field."""
    low, high = field.ends
    margin = 0.05 * (high - low) or 0.5
    if field.scale == "log":
        axes.set_xscale("log")
        axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
        return
    axes.set_xlim(low - margin, high + margin)
    if 0 < len(field.values) <= FEW:
        ticks = [field.position(value) for value in field.values]
        axes.set_xticks(ticks, [label(field, value) for value in field.values])


def _point(axes: Axes, x: float, trial: Trial, group: Group, y: float | None = None) -> None:
    fill = group.colour if trial.status == "done" else "white"
    value = trial.value if y is None else y
    axes.plot(x, value, marker=group.marker, ms=4.5, mfc=fill, mec=group.colour, mew=1.1, ls="", zorder=4)  # type: ignore[arg-type]  # not None here


def _interval(axes: Axes, x: float, search: Search, trial: Trial, group: Group) -> None:
    interval = trial.validation
    if search.metric == BALANCED_ACCURACY and interval is not None:
        axes.plot([x, x], [interval.low, interval.high], color=group.colour, lw=0.9, alpha=0.55, zorder=2)


def _ring(axes: Axes, search: Search, x: Any) -> None:
    """Marks the choice."""
    if search.choice is not None:
        trial = search.trial(search.choice.cheapest)
        axes.plot(x(trial), trial.value, marker="o", ms=11, mfc="none", mec=INK, mew=1.3, ls="", zorder=5)  # type: ignore[arg-type]  # what was chosen has a score


def _legend(
    figure: Figure, search: Search, by: Field | None, *, broken: bool = False, choice: Line2D | None = None
) -> None:
    """What colours and marks mean, below the axes."""
    handles = [
        Line2D([], [], color=group.colour, marker=group.marker, ls="", ms=5, label=f"{by.label} {group.label}")
        for group in _groups(search, by)
        if by is not None
    ]
    if any(trial.status != "done" and trial.value is not None for trial in search.trials):
        handles.append(Line2D([], [], mec=INK, mfc="white", marker="o", ls="", ms=5, label="fewer epochs"))
    if broken:
        handles.append(Line2D([], [], color=INK, marker="x", ls="", ms=5, label="diverged or failed"))
    if search.choice is not None:
        handles.append(choice or Line2D([], [], mec=INK, mfc="none", marker="o", ls="", ms=9, label="choice"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handlelength=1.2)


Cell = tuple[str, float, float]


def _cells(field: Field) -> list[Cell]:
    """The parts of a field's axis, each with its name and its ends."""
    if field.values and len(field.values) <= 2 * FEW:
        positions = [(label(field, value), field.position(value)) for value in field.values]
        return [(name, position, position) for name, position in positions]
    low, high = field.ends
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low, high])
    return [(_range(field, start, end), start, end) for start, end in pairwise(edges)]


def _range(field: Field, start: float, end: float) -> str:
    ends = [10**edge if field.scale == "log" else edge for edge in (start, end)]
    return "\n-".join(f"{edge:.1e}" if field.scale == "log" else f"{edge:.3g}" for edge in ends)


def _cell(cells: Sequence[Cell], field: Field, trial: Trial) -> int | None:
    """In which part a trial lies; the last one has its upper end too."""
    position = field.position(trial.parameters.get(field.key))
    inside = [place for place, (_, start, end) in enumerate(cells) if start - 1e-9 <= position <= end + 1e-9]
    return inside[0] if inside else None


def _height(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return (value - low) / (high - low) if high > low else 0.5


def _vertical(axes: Axes, place: int, field: Field) -> None:
    """An axis of parallel coordinates, with its values beside it."""
    axes.axvline(place, color=INK, lw=0.8)
    if 0 < len(field.values) <= FEW:
        marks = [(field.position(value), label(field, value)) for value in field.values]
    else:
        marks = [(position, _mark(field, position)) for position in _ticks(field)]
    for position, text in marks:
        height = _height(position, field.ends)
        axes.plot([place - 0.008, place], [height, height], color=INK, lw=0.8, zorder=7)
        written = axes.text(place - 0.016, height, text, ha="right", va="center", size=7.5, zorder=8)
        written.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _ticks(field: Field) -> Floats:
    """Round numbers on the axis; powers of ten, where there are two of them."""
    low, high = field.ends
    decades = np.arange(np.ceil(low - 1e-9), high + 1e-9)
    if field.scale == "log" and len(decades) > 1:
        return decades
    ticks: Floats = np.asarray(MaxNLocator(5).tick_values(low, high), dtype=np.float64)
    inside: Floats = ticks[(ticks >= low - 1e-9) & (ticks <= high + 1e-9)]
    return inside if len(inside) else np.array([low])


def _mark(field: Field, position: float) -> str:
    return f"{10**position:.1e}" if field.scale == "log" else f"{position:.3g}"
