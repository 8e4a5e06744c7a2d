"""What the page says of each run, and the figure and table files that lie beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import confidence_figures, figures, provenance, scores
from analysis.aggregate import Evaluated
from analysis.audit.findings import Audit
from analysis.calibration import at_temperature, reliability, selective_accuracy
from analysis.collect import Model, Predictions, Run
from analysis.evaluation import Evaluation
from analysis.report import tables
from analysis.report.asked import Asked
from analysis.report.audits import Audits, Elsewhere
from analysis.report.maps import (
    Chosen,
    Explainer,
    Maps,
    MeasuredMaps,
    draw_chosen,
    draw_maps,
    find_explainer,
    measure_maps,
)
from analysis.report.writer import Folder, Picture, Room, Writer

WIDE = 16
"""From this many classes on a matrix takes the whole width of the page."""
NOT_ASKED = "it was not asked for"


@dataclass(frozen=True)
class SetSection:
    """What the page says of one set of tiles."""

    anchor: str
    evaluation: Evaluation
    pictures: list[Picture]
    every_score: pd.DataFrame
    per_class: pd.DataFrame
    selective: pd.DataFrame
    per_group: pd.DataFrame | None
    widenings: pd.DataFrame | None
    """Where no slides or patients are known."""
    maps: Maps | str
    """Or why there are none."""
    measured_maps: MeasuredMaps | str | None
    """Or why there are none; None where none were asked for."""
    chosen: Chosen | None
    """Tiles that were asked for, if the set has any of them."""


@dataclass(frozen=True)
class Training:
    """What the page says of how a model came to be."""

    run: Run
    curves: list[Picture]
    rejected: pd.DataFrame
    commands: list[str]
    methods: str
    audit: Audit | Elsewhere | str
    """Or in which section it stands, or why there is none."""


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


def model_section(
    evaluated: Evaluated, number: int, out: Path, room: Room, asked: Asked, audits: Audits
) -> ModelSection:
    """Draws and writes everything of one model into a folder of its own in `out`."""
    model, evaluations = evaluated.model, evaluated.evaluations
    folder = out / f"{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', model.name)}"
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, room, model, figures.codes(model.classes))
    explainer = find_explainer(model) if evaluations else ""
    audit = audits.of(model, f"model-{number}") if isinstance(model, Run) and asked.audit else NOT_ASKED
    return ModelSection(
        anchor=f"model-{number}",
        model=model,
        folder=folder.name,
        facts=tables.facts(model),
        classes=writer.table(tables.classes(model, writer.codes), "classes"),
        training=_training(writer, evaluated, audit) if isinstance(model, Run) else None,
        calibration=writer.table(tables.calibration(evaluations), "calibration"),
        temperature=evaluations[0].temperature if evaluations else None,
        sets=[
            _set_section(writer, each, f"model-{number}-set-{place}", explainer, asked, is_first=place == 1)
            for place, each in enumerate(evaluations, start=1)
        ],
    )


def _training(writer: Writer, evaluated: Evaluated, audit: Audit | Elsewhere | str) -> Training:
    run = evaluated.model
    assert isinstance(run, Run)
    writer.table(run.history, "epochs")
    if isinstance(audit, Audit):
        _write_audit(writer, audit)
    return Training(
        run=run,
        curves=_curves(writer, run),
        rejected=writer.table(provenance.rejected(run), "rejected"),
        commands=provenance.commands(run),
        methods=provenance.methods(run, evaluated.evaluations),
        audit=audit,
    )


def _write_audit(writer: Writer, audit: Audit) -> None:
    """Its tables, in a folder of their own."""
    folder = Folder(writer.folder / "audit", writer.room)
    folder.folder.mkdir(exist_ok=True)
    for name, table in audit.tables():
        folder.table(table, name)


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
        per_class=writer.table(tables.per_class(evaluation, model.class_names), f"{split}-classes"),
        selective=writer.table(evaluation.selective, f"{split}-selective"),
        per_group=writer.table(tables.per_group(evaluation), f"{split}-groups") if grouped else None,
        widenings=None if grouped else tables.widenings(len(each.labels), asked.patients.get(split)),
        maps=explainer if isinstance(explainer, str) else draw_maps(writer, each, explainer, asked.maps),
        measured_maps=measure_maps(writer, each, explainer, asked.measured_maps) if is_first else None,
        chosen=draw_chosen(writer, each, explainer, asked.tiles, asked.maps),
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
