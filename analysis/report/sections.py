"""What the page says of each run, and the figure and table files that lie beside it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from analysis import figures, scores
from analysis.collect import Predictions, Run
from analysis.gradcam import on_tile
from analysis.panels import Case, Panel, Panels, make_panels
from analysis.report import tables
from trainer.checkpoint import load_best_model
from trainer.config import AugmentSection, load_config
from trainer.errors import RunError, UsageError

WIDE = 16
"""From this many classes on a matrix takes the whole width of the page."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    uri: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Shown:
    """A tile and its map as they stand on the page."""

    case: Case
    tile: str
    overlay: str


@dataclass(frozen=True)
class Maps:
    """The maps of one set of tiles, a row for each true class."""

    panels: Panels
    cells: str
    """What a cell of a map covers."""
    rows: list[tuple[Panel, dict[str, list[Shown]]]]


@dataclass(frozen=True)
class SetSection:
    """What the page says of one set of tiles."""

    anchor: str
    predictions: Predictions
    pictures: list[Picture]
    per_class: pd.DataFrame
    maps: Maps | str
    """Or why there are none."""


@dataclass(frozen=True)
class RunSection:
    """What the page says of one run."""

    anchor: str
    run: Run
    folder: str
    facts: list[tuple[str, str]]
    classes: pd.DataFrame
    curves: list[Picture]
    sets: list[SetSection]


@dataclass(frozen=True)
class Explainer:
    """What the maps of a run are made with."""

    model: nn.Sequential
    augment: AugmentSection


@dataclass(frozen=True)
class Folder:
    """Where the files of a run or a search go."""

    folder: Path

    def picture(self, figure: Figure, name: str, alt: str, wide: bool = False) -> Picture:
        """Writes a figure as PNG, and returns it for the page."""
        figures.png(figure, self.folder / f"{name}.png")
        return Picture(_uri("image/svg+xml", figures.svg(figure)), alt, wide)

    def csv(self, frame: pd.DataFrame, name: str) -> None:
        """Writes a table as CSV."""
        write_csv(frame, self.folder / f"{name}.csv")


@dataclass(frozen=True)
class Writer(Folder):
    """Where the files of a run go, and how it is drawn."""

    run: Run
    codes: list[str]
    edge: int
    """Side of a tile on the page, px."""

    def title(self, what: str, split: str, kind: str) -> str:
        """What a figure shows, and below it of which run and set."""
        return f"{what}\n{self.run.name} · {split} · {kind}"


def write_csv(frame: pd.DataFrame, file: Path) -> None:
    """Writes a table with a byte-order mark, without which Excel garbles Chinese names."""
    frame.to_csv(file, index=False, encoding="utf-8-sig")


def run_section(run: Run, number: int, out: Path, edge: int) -> RunSection:
    """Draws and writes everything of one run into a folder of its own in `out`."""
    folder = out / f"{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', run.name)}"
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, run, figures.codes(run.classes), edge)
    classes = tables.classes(run, writer.codes)
    writer.csv(classes, "classes")
    writer.csv(run.history, "epochs")
    explainer = _explainer(run) if run.predictions else ""
    anchors = [f"run-{number}-set-{place}" for place, _ in enumerate(run.predictions, start=1)]
    return RunSection(
        anchor=f"run-{number}",
        run=run,
        folder=folder.name,
        facts=tables.facts(run),
        classes=classes,
        curves=_curves(writer),
        sets=[
            _set_section(writer, each, anchor, explainer) for each, anchor in zip(run.predictions, anchors, strict=True)
        ],
    )


def _explainer(run: Run) -> Explainer | str:
    """The best model and its evaluation transform, or why they cannot be had."""
    try:
        return Explainer(load_best_model(run.directory), load_config(run.directory.config_file).augment)
    except (UsageError, RunError) as error:
        return (
            f"{error}. The scores still hold. For maps restore what is damaged from a copy, or remove "
            f"{run.directory.predictions_dir} and start the same training again, which goes on from what is whole"
        )


def _curves(writer: Writer) -> list[Picture]:
    run = writer.run
    if run.history.empty:
        return []
    best = None if run.best is None else int(run.best["epoch"])
    loss = figures.loss_curves(run.history, best, writer.title("Loss", "train and val", run.kind))
    metrics = figures.metric_curves(run.history, best, writer.title("Scores on validation", "val", run.kind))
    return [
        writer.picture(loss, "loss", "Training and validation loss by epoch"),
        writer.picture(metrics, "metrics", "Accuracy, balanced accuracy and macro F1 on validation by epoch"),
    ]


def _set_section(writer: Writer, predictions: Predictions, anchor: str, explainer: Explainer | str) -> SetSection:
    per_class = tables.per_class(writer.run, predictions)
    writer.csv(per_class, f"{predictions.split}-classes")
    writer.csv(tables.confusion(writer.run, predictions), f"{predictions.split}-confusion")
    return SetSection(
        anchor=anchor,
        predictions=predictions,
        pictures=[*_matrices(writer, predictions), *_rocs(writer, predictions)],
        per_class=per_class,
        maps=explainer if isinstance(explainer, str) else _maps(writer, predictions, explainer),
    )


def _matrices(writer: Writer, predictions: Predictions) -> list[Picture]:
    split, kind = predictions.split, predictions.kind
    matrix = scores.confusion_matrix(predictions.labels, predictions.predicted, len(writer.codes))
    counts = figures.confusion(matrix, writer.codes, writer.title("Confusion, tiles", split, kind))
    shares = figures.confusion_by_row(
        matrix, writer.codes, writer.title("Confusion, % of each true class", split, kind)
    )
    wide = len(writer.codes) >= WIDE
    return [
        writer.picture(counts, f"{split}-confusion", f"Confusion matrix on {split} in tiles", wide),
        writer.picture(shares, f"{split}-confusion-by-row", f"Confusion matrix on {split} by row", wide),
    ]


def _rocs(writer: Writer, predictions: Predictions) -> list[Picture]:
    split, kind = predictions.split, predictions.kind
    curves = scores.roc_curves(predictions.labels, predictions.probabilities)
    micro = scores.micro_roc(predictions.labels, predictions.probabilities)
    drawn = (curves, micro, scores.macro_roc(curves), writer.codes)
    whole = figures.roc(*drawn, writer.title("ROC, one class against the rest (AUC)", split, kind))
    corner = figures.roc_corner(*drawn, writer.title("The same, upper left corner", split, kind))
    return [
        writer.picture(whole, f"{split}-roc", f"ROC curves on {split}"),
        writer.picture(corner, f"{split}-roc-corner", f"ROC curves on {split}, few false positives"),
    ]


def _maps(writer: Writer, predictions: Predictions, explainer: Explainer) -> Maps | str:
    try:
        panels = make_panels(writer.run, predictions, explainer.model, explainer.augment)
    except UsageError as error:
        return str(error)
    rows, sheet = [], []
    for panel in panels.classes:
        drawn = [(case, *_draw(case, panels, panel.highest, writer.edge)) for case in panel.cases]
        shown = [Shown(case, _webp(tile), _webp(heat)) for case, tile, heat in drawn]
        rows.append((panel, {choice: [one for one in shown if one.case.choice == choice] for choice in panel.choices}))
        cases = [(tile, heat, _caption(case, writer.codes)) for case, tile, heat in drawn]
        sheet.append((writer.codes[panel.label], cases, panel.highest))
    title = writer.title(
        "Grad-CAM of the predicted class; bars: what a cell adds to the logit", predictions.split, predictions.kind
    )
    figures.png(figures.map_sheet(sheet, title), writer.folder / f"{predictions.split}-maps.png")
    return Maps(panels, _cells(panels), rows)


def _cells(panels: Panels) -> str:
    """The grid of a map, and the size of its cells on the network's input and on the tile."""
    rows, columns = panels.grid
    height, width = panels.cell
    on_input = _size(panels.input_size / rows, panels.input_size / columns, "px")
    on_tile = _size(height, width, "px")
    if panels.mpp is not None:
        on_tile += f" ({_size(height * panels.mpp, width * panels.mpp, 'µm')})"
    return f"Maps of {rows} x {columns} cells; a cell is {on_input} of the input, {on_tile} of the tile"


def _size(height: float, width: float, unit: str) -> str:
    """A square's side, or both sides of what is none."""
    return " x ".join(dict.fromkeys((f"{height:.0f}", f"{width:.0f}"))) + f" {unit}"


def _draw(case: Case, panels: Panels, highest: float, edge: int) -> tuple[figures.Pixels, figures.Pixels]:
    """A tile and its overlay, at most `edge` px wide and high."""
    tile = _shrunk(case.tile, edge)
    size = (tile.shape[0], tile.shape[1])
    down, right = size[0] / panels.tile_size[0], size[1] / panels.tile_size[1]
    top, left, height, width = panels.box
    box = (top * down, left * right, height * down, width * right)
    heat = np.full(size, np.nan) if case.is_empty else on_tile(case.class_map, size, box)  # nothing is no evidence
    return tile, figures.overlay(tile, heat, highest)


def _shrunk(tile: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    image = Image.fromarray(tile)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _caption(case: Case, codes: list[str]) -> str:
    return f"{codes[case.true]}, predicted {codes[case.predicted]} ({case.probability:.3f})\n{case.choice}"


def _webp(pixels: figures.Pixels) -> str:
    return _uri("image/webp", figures.picture(pixels, format="WEBP", quality=82))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def colour_bar_uri() -> str:
    """The maps' colours, from the highest value above to 0 below."""
    return _uri("image/png", figures.picture(figures.colour_bar(), format="PNG"))
