"""The tables of the page: from runs to data frames with readable column names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from analysis import scores
from analysis.collect import Predictions, Run
from trainer.config import load_config
from trainer.errors import UsageError
from trainer.wording import counted


def headline(runs: Sequence[Run]) -> pd.DataFrame:
    """The scores of each run on each set of tiles, with how that set was parted from the training tiles.

    Columns `run, set, split, tiles, accuracy, balanced accuracy, macro F1, macro AUC`.
    """
    rows = [
        {"run": run.name, "set": each.split, "split": each.kind}
        | asdict(scores.headline(each.labels, each.probabilities))
        for run in runs
        for each in run.predictions
    ]
    names = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "macro_auc": "macro AUC"}
    columns = ["run", "set", "split", "tiles", "accuracy", *names]
    return pd.DataFrame(rows, columns=columns).rename(columns=names)


def per_class(run: Run, predictions: Predictions) -> pd.DataFrame:
    """Tiles, precision, recall, F1 and one-vs-rest AUC of each class."""
    matrix = scores.confusion_matrix(predictions.labels, predictions.predicted, len(run.classes))
    each = scores.class_scores(matrix)
    curves = scores.roc_curves(predictions.labels, predictions.probabilities)
    return pd.DataFrame(
        {
            "class": run.classes,
            "tiles": each.tiles,
            "precision": each.precision,
            "recall": each.recall,
            "F1": each.f1,
            "AUC": [curve.area for curve in curves],
        }
    )


def confusion(run: Run, predictions: Predictions) -> pd.DataFrame:
    """Confusion matrix: a row a true class, a column a predicted one."""
    matrix = scores.confusion_matrix(predictions.labels, predictions.predicted, len(run.classes))
    frame = pd.DataFrame(matrix, columns=list(run.classes))
    frame.insert(0, "true \\ predicted", list(run.classes))
    return frame


def classes(run: Run, codes: Sequence[str]) -> pd.DataFrame:
    """Names of each class, its code in figures, and its tiles in each set (missing where nothing tells them)."""
    given = run.identity.get("class_names") or {}
    frame = pd.DataFrame({"class": run.classes})
    if list(codes) != list(run.classes):
        frame["in figures"] = list(codes)
    if given:
        frame["English"] = [given.get(name, {}).get("en", "") for name in run.classes]
        frame["Chinese"] = [given.get(name, {}).get("zh", "") for name in run.classes]
    for split, counts in _counts(run).items():
        frame[split] = pd.array([counts.get(name, 0) for name in run.classes], dtype="Int64")
    return frame


def _counts(run: Run) -> dict[str, pd.Series]:
    """Tiles by class in each set: of the training store's from its index, of the others from their predictions."""
    counts = {each.split: each.table["label"].value_counts() for each in run.predictions}
    try:
        index = run.open_store("train").index
        class_map = load_config(run.directory.config_file).data.class_map
    except UsageError:
        return counts
    labels = run.split.merge(index[["tile_id", "label"]], on="tile_id").replace({"label": class_map})
    order = [split for split in ("train", "val", "test") if split in set(labels["split"])]
    own = {split: labels.loc[labels["split"] == split, "label"].value_counts() for split in order}
    return own | {split: count for split, count in counts.items() if split not in own}


def facts(run: Run) -> list[tuple[str, str]]:
    """What identifies a run, as terms and their values."""
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
    attempts = counted(run.attempts, "attempt")
    if run.history.empty:
        return f"no epoch has ended yet, {attempts}"
    seconds = float(np.sum(run.history["seconds"]))
    counts = sorted(set(run.history["world_size"]))
    workers = f"{', '.join(map(str, counts))} worker{'' if counts == [1] else 's'}"
    epochs = counted(len(run.history), "epoch")
    return f"{epochs}, {seconds:,.0f} s, {workers}, {attempts}"
