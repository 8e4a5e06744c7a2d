"""What the page says of each run, and the figure and table files that lie beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from analysis import confidence_figures, figures, provenance, scores
from analysis.aggregate import Evaluated
from analysis.audit.audit import audit_run
from analysis.audit.findings import Audit
from analysis.calibration import at_temperature, reliability, selective_accuracy
from analysis.collect import Model, Predictions, Run
from analysis.evaluation import Evaluation
from analysis.gradcam import on_tile
from analysis.map_tests import figures as map_figures
from analysis.map_tests.map_tests import MapTests, map_tests
from analysis.panels import Case, EveryClass, Panel, Panels, View, has_tile, make_panels, under_every_class
from analysis.report import cells, tables
from analysis.report.asked import Asked
from trainer.checkpoint import load_best_model
from trainer.config import AugmentSection, load_config
from trainer.errors import RunError, UsageError

FEWER_PERTURBED = 10
"""Of so many tiles whose maps are measured, one is deleted and inserted, which takes 63 forward passes."""
WIDE = 16
"""From this many classes on a matrix takes the whole width of the page."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    uri: str
    alt: str
    wide: bool = False
    """Whether it takes the whole width of the page."""


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
    evaluation: Evaluation
    pictures: list[Picture]
    every_score: pd.DataFrame
    per_class: pd.DataFrame
    per_group: pd.DataFrame | None
    widenings: pd.DataFrame | None
    """Where no slides or patients are known."""
    maps: Maps | str
    """Or why there are none."""
    measured_maps: MeasuredMaps | None
    """None where none were asked for, or there are none."""
    chosen: list[Chosen]
    """Tiles that were asked for."""


@dataclass(frozen=True)
class Chosen:
    """One tile under every class."""

    seen: EveryClass
    tile: str
    overlays: list[tuple[int, str]]
    """Class and picture, the most probable class first."""


@dataclass(frozen=True)
class MeasuredMaps:
    """What the maps of a set lie on."""

    tests: MapTests
    pictures: list[Picture]


@dataclass(frozen=True)
class Training:
    """What the page says of how a model came to be."""

    run: Run
    curves: list[Picture]
    rejected: pd.DataFrame
    commands: list[str]
    methods: str
    audit: Audit | str
    """Or why there is none."""


@dataclass(frozen=True)
class ModelSection:
    """What the page says of one model."""

    anchor: str
    model: Model
    folder: str
    facts: list[tuple[str, str]]
    classes: pd.DataFrame
    training: Training | None
    """None of predictions that came without their run."""
    calibration: pd.DataFrame
    temperature: float | None
    sets: list[SetSection]


@dataclass(frozen=True)
class Explainer:
    """What the maps of a run are made with."""

    model: nn.Sequential
    augment: AugmentSection


@dataclass(frozen=True)
class Folder:
    """Where the files of a model or a search go."""

    folder: Path

    def picture(self, figure: Figure, name: str, alt: str, wide: bool = False) -> Picture:
        """Writes a figure as PNG and SVG, and returns it for the page."""
        drawn = figures.svg(figure)
        (self.folder / f"{name}.svg").write_bytes(drawn)
        figures.png(figure, self.folder / f"{name}.png")
        return Picture(_uri("image/svg+xml", drawn), alt, wide)

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Writes a table as CSV and Parquet, and returns it for the page."""
        cells.write(frame, self.folder / name)
        return frame


@dataclass(frozen=True)
class Writer(Folder):
    """Where the files of a model go, and how it is drawn."""

    model: Model
    codes: list[str]
    edge: int
    """Side of a tile on the page, px."""

    def title(self, what: str, split: str, kind: str) -> str:
        """What a figure shows, and below it of which model and set."""
        return f"{what}\n{self.model.name} · {split} · {kind}"


def model_section(evaluated: Evaluated, number: int, out: Path, edge: int, asked: Asked) -> ModelSection:
    """Draws and writes everything of one model into a folder of its own in `out`."""
    model, evaluations = evaluated.model, evaluated.evaluations
    folder = out / f"{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', model.name)}"
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, model, figures.codes(model.classes), edge)
    explainer = _explainer(model) if evaluations else ""
    return ModelSection(
        anchor=f"model-{number}",
        model=model,
        folder=folder.name,
        facts=tables.facts(model),
        classes=writer.table(tables.classes(model, writer.codes), "classes"),
        training=_training(writer, evaluated, asked) if isinstance(model, Run) else None,
        calibration=writer.table(tables.calibration(evaluations), "calibration"),
        temperature=evaluations[0].temperature if evaluations else None,
        sets=[
            _set_section(writer, each, f"model-{number}-set-{place}", explainer, asked, is_first=place == 1)
            for place, each in enumerate(evaluations, start=1)
        ],
    )


def _training(writer: Writer, evaluated: Evaluated, asked: Asked) -> Training:
    run = evaluated.model
    assert isinstance(run, Run)
    writer.table(run.history, "epochs")
    return Training(
        run=run,
        curves=_curves(writer, run),
        rejected=writer.table(provenance.rejected(run), "rejected"),
        commands=provenance.commands(run),
        methods=provenance.methods(run, evaluated.evaluations),
        audit=_audit(writer, run) if asked.audit else "it was not asked for",
    )


def _audit(writer: Writer, run: Run) -> Audit | str:
    """What the run's tiles say of how far to trust its scores, its tables in a folder of their own."""
    try:
        audit = audit_run(run)
    except UsageError as error:
        return str(error)
    folder = Folder(writer.folder / "audit")
    folder.folder.mkdir(exist_ok=True)
    for name, table in audit.tables():
        folder.table(table, name)
    return audit


def _explainer(run: Model) -> Explainer | str:
    """The best model and its evaluation transform, or why they cannot be had."""
    if not isinstance(run, Run):
        return "these predictions came without their run, so there is no model to explain"
    try:
        return Explainer(load_best_model(run.directory), load_config(run.directory.config_file).augment)
    except (UsageError, RunError) as error:
        return (
            f"{error}. The scores still hold. For maps restore what is damaged from a copy, or remove "
            f"{run.directory.predictions_dir} and start the same training again, which goes on from what is whole"
        )


def _curves(writer: Writer, run: Run) -> list[Picture]:
    if run.history.empty:
        return []
    best = None if run.best is None else int(run.best["epoch"])
    loss = figures.loss_curves(run.history, best, writer.title("Loss", "train and val", run.kind))
    metrics = figures.metric_curves(run.history, best, writer.title("Scores on validation", "val", run.kind))
    return [
        writer.picture(loss, "loss", "Training and validation loss by epoch"),
        writer.picture(metrics, "metrics", "Accuracy, balanced accuracy and macro F1 on validation by epoch"),
    ]


def _set_section(
    writer: Writer, evaluation: Evaluation, anchor: str, explainer: Explainer | str, asked: Asked, *, is_first: bool
) -> SetSection:
    each, model = evaluation.predictions, writer.model
    split = each.split
    writer.table(tables.confusion(each, model.classes), f"{split}-confusion")
    grouped = evaluation.groups is not None
    return SetSection(
        anchor=anchor,
        evaluation=evaluation,
        pictures=[*_matrices(writer, each), *_curves_of_classes(writer, each), *_confidence(writer, evaluation)],
        every_score=writer.table(tables.every_score(evaluation), f"{split}-scores"),
        per_class=writer.table(tables.per_class(evaluation), f"{split}-classes"),
        per_group=writer.table(tables.per_group(evaluation), f"{split}-groups") if grouped else None,
        widenings=None if grouped else tables.widenings(len(each.labels), asked.patients.get(split)),
        maps=explainer if isinstance(explainer, str) else _maps(writer, each, explainer),
        measured_maps=_measured_maps(writer, each, explainer, asked.measured_maps) if is_first else None,
        chosen=_chosen(writer, each, explainer, asked.tiles),
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


def _curves_of_classes(writer: Writer, predictions: Predictions) -> list[Picture]:
    split, kind = predictions.split, predictions.kind
    given = (predictions.labels, predictions.probabilities)
    curves = scores.roc_curves(*given)
    drawn = (curves, scores.micro_roc(*given), scores.macro_roc(curves), writer.codes)
    whole = figures.roc(*drawn, writer.title("ROC, one class against the rest (AUC)", split, kind))
    corner = figures.roc_corner(*drawn, writer.title("The same, upper left corner", split, kind))
    recalled = confidence_figures.precision_recall(
        scores.precision_recall_curves(*given),
        scores.micro_precision_recall(*given),
        writer.codes,
        writer.title("Precision and recall, one class against the rest (AP)", split, kind),
    )
    return [
        writer.picture(whole, f"{split}-roc", f"ROC curves on {split}"),
        writer.picture(corner, f"{split}-roc-corner", f"ROC curves on {split}, few false positives"),
        writer.picture(recalled, f"{split}-precision-recall", f"Precision against recall on {split}"),
    ]


def _confidence(writer: Writer, evaluation: Evaluation) -> list[Picture]:
    each = evaluation.predictions
    if not len(each.labels):
        return []
    curves = {"as predicted": reliability(each.labels, each.probabilities)}
    if evaluation.temperature is not None:
        cooled = at_temperature(each.probabilities, evaluation.temperature)
        curves[f"at temperature {evaluation.temperature:.2f}"] = reliability(each.labels, cooled)
    certain = selective_accuracy(each.labels, each.probabilities)
    drawn = confidence_figures.reliability(curves, writer.title("Accuracy by confidence", each.split, each.kind))
    told = confidence_figures.selective(
        certain, writer.title("Accuracy if only the most certain are told", each.split, each.kind)
    )
    return [
        writer.picture(drawn, f"{each.split}-reliability", f"Accuracy against confidence on {each.split}"),
        writer.picture(told, f"{each.split}-selective", f"Accuracy against coverage on {each.split}"),
    ]


def _maps(writer: Writer, predictions: Predictions, explainer: Explainer) -> Maps | str:
    try:
        assert isinstance(writer.model, Run), "there is a model to explain"
        panels = make_panels(writer.model, predictions, explainer.model, explainer.augment)
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


def _chosen(writer: Writer, predictions: Predictions, explainer: Explainer | str, names: Sequence[str]) -> list[Chosen]:
    """The tiles of the set that were asked for, under every class."""
    here = [name for name in names if has_tile(predictions, name)]
    if isinstance(explainer, str) or not here:
        return []
    assert isinstance(writer.model, Run), "there is a model to explain"
    try:
        seen = [under_every_class(writer.model, predictions, explainer.model, explainer.augment, name) for name in here]
    except UsageError:
        return []  # as are the other maps, which say why
    return [_drawn_under_every_class(each, writer.edge) for each in seen]


def _drawn_under_every_class(seen: EveryClass, edge: int) -> Chosen:
    tile, order = _shrunk(seen.tile, edge), np.argsort(-seen.probabilities, kind="stable").tolist()
    overlays = [(index, _webp(_overlay(tile, seen.class_maps[index], seen, seen.highest))) for index in order]
    return Chosen(seen, _webp(tile), overlays)


def _measured_maps(
    writer: Writer, predictions: Predictions, explainer: Explainer | str, tiles: int
) -> MeasuredMaps | None:
    """What the maps of some tiles of each class lie on; of a few of them the evidence is deleted and inserted too."""
    if isinstance(explainer, str) or not tiles:
        return None
    assert isinstance(writer.model, Run), "there is a model to explain"
    run, split = writer.model, predictions.split
    try:
        tests = map_tests(
            run, predictions, explainer.model, explainer.augment, most=tiles, perturbed=max(1, tiles // FEWER_PERTURBED)
        )
    except UsageError:
        return None  # as are the maps themselves, which say why
    for name in ("tiles", "associations", "areas"):
        writer.table(getattr(tests, name), f"{split}-maps-{name}")
    title = writer.title("What maps lie on, against maps that know nothing", split, predictions.kind)
    drawn = map_figures.associations(tests.associations, run.classes, writer.codes, title)
    pictures = [writer.picture(drawn, f"{split}-maps-associations", f"What maps lie on, on {split}", wide=True)]
    if not tests.curves.empty:
        title = writer.title("Probability as evidence is deleted or inserted", split, predictions.kind)
        drawn = map_figures.curves(tests.curves, title)
        pictures.append(writer.picture(drawn, f"{split}-maps-curves", f"Deletion and insertion on {split}", wide=True))
    return MeasuredMaps(tests, pictures)


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
    return tile, _overlay(tile, case.class_map, panels, highest)


def _overlay(tile: figures.Pixels, class_map: NDArray[np.float32], view: View, highest: float) -> figures.Pixels:
    """A map over a tile that may have been made smaller; nothing where the map is zero everywhere: that is no evidence.

    Args:
        tile: (H, W, 3).
        class_map: (h, w).
        view: how it lies on the tile.
        highest: the map's value at the upper end of the colours.
    """
    size = (tile.shape[0], tile.shape[1])
    down, right = size[0] / view.tile_size[0], size[1] / view.tile_size[1]
    top, left, height, width = view.box
    box = (top * down, left * right, height * down, width * right)
    heat = on_tile(class_map, size, box) if class_map.any() else np.full(size, np.nan)
    return figures.overlay(tile, heat, highest)


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
