"""Draws what a run learned: curves, matrices and maps, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from analysis.scores import Roc, by_row

Pixels = NDArray[np.uint8]
MapRow = tuple[str, Sequence[tuple[Pixels, Pixels, str]], float]
"""A row of a sheet of maps: its name; tile, overlay and caption of each case; the highest value of its maps."""

# From Paul Tol's and Okabe and Ito's schemes. Those of one dash are far apart to any eye, also without red or green;
# those of different dashes may be near to the colour-blind, and differ in the dash.
COLOURS = ("#332288", "#44AA99", "#CCBB44", "#33BBEE", "#117733", "#882255", "#E69F00", "#0077BB", "#EE6677", "#CC3311")
SOLID, DASHED, DOTTED, DASH_DOTTED = "-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
LINES = [(colour, SOLID if place < 5 else DASHED) for place, colour in enumerate(COLOURS)]
INK, GREY, PALE = "#1f2933", "#9aa5b1", "#b8c2cc"
GRID = "#e4e7eb"
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3,  # long enough to show a dash
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "svg.hashsalt": "tissuegrid",  # the same figure is the same file
}
STYLED = matplotlib.rc_context(STYLE)  # type: ignore[arg-type]  # as a decorator: leaves the settings of other programs alone
MOST_POINTS = 400
"""Of a curve that is drawn."""
FEW = 12
"""Up to this many classes a matrix has room for decimals and zeros."""
MAP_COLOURS = "viridis"
MAP_OPACITY = 0.55


def codes(classes: Sequence[str]) -> list[str]:
    """Names short and plain enough for a figure (no font has every script): the class's own, else C1, C2, ..."""
    plain = re.compile(r"[A-Za-z0-9 _.+-]{1,14}")
    return [name if plain.fullmatch(name) else f"C{number}" for number, name in enumerate(classes, start=1)]


@STYLED
def loss_curves(history: pd.DataFrame, best_epoch: int | None, title: str) -> Figure:
    """Training and validation loss by epoch."""
    return _curves(history, {"train/loss": "train", "val/loss": "val"}, "loss", best_epoch, title)


@STYLED
def metric_curves(history: pd.DataFrame, best_epoch: int | None, title: str) -> Figure:
    """Accuracy, balanced accuracy and macro F1 on validation by epoch."""
    lines = {
        "val/balanced_accuracy": "balanced accuracy",
        "val/accuracy": "accuracy",
        "val/macro_f1": "macro F1",
    }
    return _curves(history, lines, "validation score", best_epoch, title)


def _curves(history: pd.DataFrame, lines: dict[str, str], ylabel: str, best_epoch: int | None, title: str) -> Figure:
    figure, axes = new_figure(5.2, 3.4, title)
    styles = zip(COLOURS, (SOLID, DASHED, DOTTED), "osD", strict=False)  # equal curves show through each other's gaps
    for (column, label), (colour, dash, marker) in zip(lines.items(), styles, strict=False):
        axes.plot(history["epoch"], history[column], color=colour, ls=dash, marker=marker, ms=3.5, lw=1.5, label=label)
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=0, label="best epoch")
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=GRID, lw=0.6)
    axes.legend()
    return figure


@STYLED
def confusion(matrix: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Confusion matrix in tiles."""
    texts = [[str(count) for count in row] for row in matrix]
    return _matrix(matrix.astype(np.float64), texts, names, "tiles", float(max(1, matrix.max())), title)


@STYLED
def confusion_by_row(matrix: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Confusion matrix in per cent of each true class; rows of a class without tiles are left blank."""
    shares = 100 * by_row(matrix)
    digits = 1 if len(names) <= FEW else 0
    texts = [
        [f"{share:.{digits}f}" if count else "0" if row.any() else "" for share, count in zip(part, row, strict=True)]
        for part, row in zip(shares, matrix, strict=True)
    ]
    return _matrix(shares, texts, names, "% of the true class", 100.0, title)


def _matrix(
    values: NDArray[np.float64],
    texts: list[list[str]],
    names: Sequence[str],
    unit: str,
    highest: float,
    title: str,
) -> Figure:
    cell = 0.42 if len(names) <= FEW else 0.27
    if len(names) > FEW:  # thousands of zeros would make the page heavy
        texts, unit = [["" if text == "0" else text for text in row] for row in texts], f"{unit} (blank: 0)"
    side = max(3.2, cell * len(names))
    figure, axes = new_figure(side + 2.0, side + 1.2, title)
    sns.heatmap(
        values,
        annot=np.array(texts),
        fmt="",
        annot_kws={"size": min(8.5, 26 * cell)},
        cmap="Blues",
        vmin=0,
        vmax=highest,
        square=True,
        linewidths=0.4,
        linecolor="#eef1f4",
        xticklabels=list(names),
        yticklabels=list(names),
        cbar_kws={"label": unit, "shrink": 0.6, "aspect": 24, "pad": 0.03},
        ax=axes,
    )
    for text in axes.texts:
        if text.get_text() == "0":  # there, but not in the way of the tiles
            text.set_color(PALE)
    figure.axes[1].spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0 if max(map(len, names)) * len(names) < 50 else 90)
    axes.tick_params(axis="y", rotation=0)
    return figure


@STYLED
def roc(curves: Sequence[Roc], micro: Roc, macro: Roc, names: Sequence[str], title: str) -> Figure:
    """One-vs-rest ROC of each class, micro and macro, with their areas."""
    figure, axes = new_figure(5.2, 5.9, title)
    _draw_roc(axes, curves, micro, macro, names)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", zorder=0)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@STYLED
def roc_corner(curves: Sequence[Roc], micro: Roc, macro: Roc, names: Sequence[str], title: str) -> Figure:
    """The same where a good model's curves part: few false positives."""
    figure, axes = new_figure(5.2, 5.9, title)
    _draw_roc(axes, curves, micro, macro, names)
    axes.set(xlim=(-0.002, 0.2), ylim=(0.5, 1.005))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_roc(axes: Axes, curves: Sequence[Roc], micro: Roc, macro: Roc, names: Sequence[str]) -> None:
    """Colours the ten classes of lowest area; of more classes the rest is grey, as no eye tells fifty lines apart."""
    defined = [index for index, curve in enumerate(curves) if not np.isnan(curve.area)]
    worst = sorted(sorted(defined, key=lambda index: curves[index].area)[: len(LINES)])
    for index in sorted(set(defined) - set(worst)):
        _line(axes, curves[index], color="#d5dae0", lw=0.7)
    for (colour, dash), index in zip(LINES, worst, strict=False):
        label = f"{names[index]}  {curves[index].area:.4f}"
        _line(axes, curves[index], color=colour, ls=dash, lw=1.5, label=label)
    for name, curve, style in (("micro", micro, DOTTED), ("macro", macro, DASH_DOTTED)):
        if not np.isnan(curve.area):
            _line(axes, curve, color=INK, lw=1.8, ls=style, label=f"{name}  {curve.area:.4f}")
    if len(worst) < len(defined):
        axes.plot([], [], color="#d5dae0", lw=0.9, label=f"{len(defined) - len(worst)} classes of higher AUC")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", box_aspect=1)
    axes.grid(color=GRID, lw=0.6)


def _line(axes: Axes, curve: Roc, **style: object) -> None:
    axes.plot(*thinned(curve.false_positive_rate, curve.true_positive_rate), **style)  # type: ignore[arg-type]


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most 400 points of a curve, its corners among them."""
    if len(x) <= MOST_POINTS:
        return x, y
    length = np.cumsum(np.append(0.0, np.abs(np.diff(x)) + np.abs(np.diff(y))))
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)))
    return x[keep], y[keep]


def overlay(tile: Pixels, heat: NDArray[np.float64], highest: float) -> Pixels:
    """A map (H, W) from 0 to `highest` in colours over the tile (H, W, 3) in grey; nothing where the map is NaN."""
    grey = np.repeat(tile @ np.array([0.299, 0.587, 0.114]), 3).reshape(tile.shape)
    colour = 255 * colormaps[MAP_COLOURS](np.nan_to_num(heat) / highest if highest > 0 else heat * 0)[..., :3]
    opacity = np.where(np.isnan(heat), 0.0, MAP_OPACITY)[..., None]
    return _pixels(opacity * colour + (1 - opacity) * grey)


def colour_bar() -> Pixels:
    """The colours of a map from its highest value (above) to 0: (256, 1, 3)."""
    return _pixels(255 * colormaps[MAP_COLOURS](np.linspace(1, 0, 256))[:, None, :3])


def _pixels(values: NDArray[np.float64]) -> Pixels:
    pixels: Pixels = np.rint(values).astype(np.uint8)
    return pixels


@STYLED
def map_sheet(rows: Sequence[MapRow], title: str) -> Figure:
    """One row a class: tile and overlay of each case, captioned, and the row's colour bar from 0 to its highest value.

    All tiles have one size. It is a single picture with text on it: axes for each tile would take a minute to draw.
    """
    columns = max(len(cases) for _, cases, _ in rows)
    height, width = next(tile.shape[:2] for _, cases, _ in rows for tile, _, _ in cases)
    pitch, step, margin = round(1.34 * height), round(2.1 * width), round(0.5 * width)
    canvas = np.full((pitch * len(rows), margin + step * columns + margin, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / width * 1.4, canvas.shape[0] / width * 1.4 + 0.5))
    figure.text(0.01, 1 - 0.1 / figure.get_figheight(), title, va="top", size=9.5, parse_math=False)
    axes = figure.add_axes((0, 0, 1, 1 - 0.5 / figure.get_figheight()))
    axes.set_axis_off()
    for row, (name, cases, highest) in enumerate(rows):
        bottom = pitch * (row + 1) - round(0.04 * height)
        axes.text(0.2 * margin, bottom - height / 2, name, rotation=90, ha="center", va="center")
        for column, (tile, heat, caption) in enumerate(cases):
            left = margin + step * column
            canvas[bottom - height : bottom, left : left + 2 * width] = np.concatenate([tile, heat], axis=1)
            axes.text(left, bottom - height - 0.03 * height, caption, size=7, va="bottom")
        right = canvas.shape[1] - margin
        bar = Image.fromarray(colour_bar()).resize((max(2, width // 16), height))
        canvas[bottom - height : bottom, right : right + bar.width] = np.asarray(bar)
        for place, value in ((bottom - height, highest), (bottom, 0)):
            axes.text(right + 1.4 * bar.width, place, f"{value:.2g}", size=7, va="center")
    axes.imshow(canvas, aspect="auto")
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as SVG, its text as outlines."""
    return _save(figure, format="svg", metadata={"Date": None})


def png(figure: Figure, file: Path) -> None:
    """Writes the figure at 150 dpi, or fewer where it is as long as a door."""
    dpi = min(150, 6000 / max(figure.get_size_inches()))
    file.write_bytes(_save(figure, format="png", dpi=dpi, pil_kwargs={"compress_level": 1}))


def picture(pixels: Pixels, **options: object) -> bytes:
    """A picture (H, W, 3) as the bytes of a file; options as of `PIL.Image.Image.save`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of that size in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=9.5, parse_math=False)
    return figure, figure.subplots()


@STYLED
def _save(figure: Figure, **options: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)  # type: ignore[arg-type]
    figure.set_layout_engine("none")  # laid out now: the next format need not do it again
    return buffer.getvalue()
