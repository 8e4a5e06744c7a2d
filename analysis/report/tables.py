"""The tables of the page: from runs to data frames with readable column names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis import scores
from analysis.aggregate import Evaluated
from analysis.collect import Model, Predictions, Run
from analysis.design_effect import CORRELATIONS, widening
from analysis.evaluation import CLASS_NAMES, CONFIDENCE, NAMES, Evaluation
from trainer.config import load_config
from trainer.errors import UsageError
from trainer.wording import counted, joined

PATIENTS = (20, 50, 100)
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")


def headline(evaluated: Sequence[Evaluated]) -> pd.DataFrame:
    """The scores of each model on each set of tiles, with how that set was parted from the training tiles.

    Columns `run, set, split, tiles, intervals from, accuracy, balanced accuracy, macro F1, macro AUC`; scores are
    `Interval`s.
    """
    rows = [
        {"run": one.model.name, "set": each.predictions.split, "split": each.predictions.kind}
        | {"tiles": len(each.predictions.labels), "intervals from": each.unit}
        | {NAMES[name]: each.scores.overall[name] for name in HEADLINE}
        for one in evaluated
        for each in one.evaluations
    ]
    columns = ["run", "set", "split", "tiles", "intervals from", *(NAMES[name] for name in HEADLINE)]
    return pd.DataFrame(rows, columns=columns)


def over_seeds(group: Sequence[Evaluated]) -> pd.DataFrame:
    """Mean and standard deviation of the headline's scores over the runs of one configuration, and each.

    Columns `set, split, score, mean, sd, each`.
    """
    rows = []
    for each in group[0].evaluations:
        others = [
            other for one in group for other in one.evaluations if other.predictions.split == each.predictions.split
        ]
        for name in HEADLINE:
            values = np.array([other.scores.overall[name].value for other in others])
            rows.append(
                {
                    "set": each.predictions.split,
                    "split": each.predictions.kind,
                    "score": NAMES[name],
                    "mean": float(values.mean()),
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                    "each": " ".join(f"{value:.3f}" for value in values),
                }
            )
    return pd.DataFrame(rows)


def every_score(evaluation: Evaluation) -> pd.DataFrame:
    """All scores of a set; columns `score, value`."""
    every = evaluation.scores.overall
    return pd.DataFrame({"score": list(NAMES.values()), "value": [every[name] for name in NAMES]})


def per_class(evaluation: Evaluation, names: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Tiles, precision, recall, specificity, F1, one-vs-rest AUC and average precision of each class.

    `names` are the classes' long ones, where they were given.
    """
    tiles = np.bincount(evaluation.predictions.labels, minlength=len(evaluation.predictions.classes))
    every = evaluation.scores.by_class
    scores_ = {CLASS_NAMES[name]: every[name] for name in CLASS_NAMES}
    long = _long_names(evaluation.predictions.classes, names)
    return pd.DataFrame({"class": evaluation.predictions.classes, **long, "tiles": tiles, **scores_})


def per_group(evaluation: Evaluation) -> pd.DataFrame:
    """Tiles and accuracy of each slide or patient, the worst first; columns `group, classes, tiles, accuracy`,
    with Wilson's interval by tile."""
    each = evaluation.predictions
    frame = pd.DataFrame(
        {"group": each.table["group"], "class": each.table["label"], "right": each.predicted == each.labels}
    )
    found = frame.groupby("group", observed=True).agg(
        classes=("class", lambda names: ", ".join(sorted(set(names)))),
        tiles=("right", "size"),
        accuracy=("right", "mean"),
    )
    found = found.reset_index().sort_values(["accuracy", "tiles"], ascending=[True, False], ignore_index=True)
    pairs = zip(found["accuracy"], found["tiles"], strict=True)
    accuracy = [scores.Interval(share, *scores.wilson(share, tiles), math.nan) for share, tiles in pairs]
    return found.assign(accuracy=pd.Series(accuracy, dtype=object))


def calibration(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Log loss, Brier score and calibration error before and after the temperature, and what would fit the set itself.

    Columns `set, split, score, before, after`; last of each set its `own temperature`.
    """
    rows = []
    for each in evaluations:
        of = {"set": each.predictions.split, "split": each.predictions.kind}
        after = each.at_temperature.overall if each.at_temperature else {}
        rows += [
            {**of, "score": NAMES[name], "before": each.scores.overall[name], "after": after.get(name)}
            for name in CONFIDENCE
        ]
        rows.append({**of, "score": "own temperature", "before": each.own_temperature, "after": None})
    return pd.DataFrame(rows, columns=["set", "split", "score", "before", "after"])


def widenings(tiles: int, patients: int | None) -> pd.DataFrame:
    """By which factor an interval over tiles is too narrow, for a number of patients; if it is unknown, for some."""
    counts = [patients] if patients else [count for count in PATIENTS if count < tiles]
    rows = [
        {"patients": count} | {f"correlation {rho}": widening(tiles, count, rho) for rho in CORRELATIONS}
        for count in counts
    ]
    return pd.DataFrame(rows)


def confusion(predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
    """Confusion matrix: a row a true class, a column a predicted one."""
    matrix = scores.confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    frame = pd.DataFrame(matrix, columns=list(classes))
    frame.insert(0, "true \\ predicted", list(classes))
    return frame


def _long_names(classes: Sequence[str], given: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """English and Chinese names of classes, where any were given."""
    languages = {"English": "en", "Chinese": "zh"} if given else {}
    return {language: [given.get(name, {}).get(key, "") for name in classes] for language, key in languages.items()}


def classes(run: Model, codes: Sequence[str]) -> pd.DataFrame:
    """Names of each class, its code in figures, and its tiles in each set (missing where nothing tells them)."""
    given = run.class_names
    frame = pd.DataFrame({"class": run.classes})
    if list(codes) != list(run.classes):
        frame["in figures"] = list(codes)
    for language, names in _long_names(run.classes, given).items():
        frame[language] = names
    for split, counts in _counts(run).items():
        frame[split] = pd.array([counts.get(name, 0) for name in run.classes], dtype="Int64")
    return frame


def _counts(run: Model) -> dict[str, pd.Series]:
    """Tiles by class in each set: of the training store's from its index, of the others from their predictions."""
    counts = {each.split: each.table["label"].value_counts() for each in run.predictions}
    if not isinstance(run, Run):
        return counts
    try:
        index = run.open_store("train").index
        class_map = load_config(run.directory.config_file).data.class_map
    except UsageError:
        return counts
    labels = run.split.merge(index[["tile_id", "label"]], on="tile_id").replace({"label": class_map})
    order = [split for split in ("train", "val", "test") if split in set(labels["split"])]
    own = {split: labels.loc[labels["split"] == split, "label"].value_counts() for split in order}
    return own | {split: count for split, count in counts.items() if split not in own}


def facts(model: Model) -> list[tuple[str, str]]:
    """What identifies a model, as terms and their values."""
    if isinstance(model, Run):
        return _facts_of_run(model)
    return [("Predictions", str(model.place)), ("Classes", ", ".join(model.classes))]


def _facts_of_run(run: Run) -> list[tuple[str, str]]:
    identity, data = run.identity, run.identity["data"]
    stores = {"Training store": data["tiles"]} | {
        f"External store {name}": store for name, store in data["external"].items()
    }
    terms = [("Run directory", str(run.directory.path)), ("Started", str(identity.get("created", "—")))]
    terms += [(term, _described(store)) for term, store in stores.items()]
    terms.append(("Validation", f"{run.kind} (data.split: {data['split']}), {_sizes(run)}"))
    if run.best is not None:
        terms.append(
            (
                "Best epoch",
                f"{run.best['epoch']} (step {run.best['step']:,}), {run.best['metric']} {run.best['value']:.4f}",
            )
        )
    terms.append(("Training", _effort(run)))
    if hosts := sorted({str(each["host"]) for each in run.attempts if "host" in each}):
        terms.append(("Hosts", joined(hosts)))
    terms.append(("Looked at", _looks(run)))
    if "precision" in identity:
        numerics = (
            f"{identity['precision']}, BatchNorm {identity['norm']}, at most {identity['micro_batch']} tiles at once"
        )
        terms.append(("Numerics", numerics))
    terms.append(("Configuration", f"hash {str(identity.get('config_hash', '—'))[:16]}"))
    terms.append(("Code", str(identity.get("code", "—"))))
    terms.append(("Versions", ", ".join(f"{name} {version}" for name, version in identity.get("versions", {}).items())))
    return terms


def _described(store: dict[str, object]) -> str:
    return f"{store['path']}, {store['tiles']:,} tiles, fingerprint {str(store['fingerprint'])[:16]}"


def _sizes(run: Run) -> str:
    sizes = run.split["split"].value_counts()
    return ", ".join(f"{sizes[split]:,} {split}" for split in ("train", "val", "test") if split in sizes)


def _effort(run: Run) -> str:
    attempts = counted(len(run.attempts), "attempt")
    if run.history.empty:
        return f"no epoch has ended yet, {attempts}"
    seconds = float(np.sum(run.history["seconds"]))
    counts = sorted(set(run.history["world_size"]))
    workers = f"{', '.join(map(str, counts))} worker{'' if counts == [1] else 's'}"
    epochs = counted(len(run.history), "epoch")
    spent = float(np.sum(run.history["seconds"] * run.history["world_size"]))
    return f"{epochs}, {seconds:,.0f} s, {workers}, {attempts}, {spent / 3600:.2f} worker-hours"


def _looks(run: Run) -> str:
    """How often sets that nothing was chosen by were evaluated."""
    looks = [f"{split} {'once' if times == 1 else f'{times} times'}" for split, times in run.looks.items()]
    return joined(looks) if looks else "neither test nor external data"
