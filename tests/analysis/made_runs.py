"""Run directories and stores written by hand, as their contracts say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainer.checkpoint import commit, store_base
from trainer.model import build
from trainer.rundir import RunDir
from trainer.tiles import meta
from trainer.tiles import store as tile_store
from trainer.weights import load_base

CLASSES = ("LYM", "STR", "TUM")


def write_store(
    path: Path, labels: Sequence[str], tiles: np.ndarray, paths: Sequence[str] | None = None
) -> pd.DataFrame:
    """A store of these tiles (N, H, W, 3); returns its index."""
    path.mkdir(parents=True)
    np.save(path / "tiles.npy", tiles)
    height, width = tiles.shape[1:3]
    index = pd.DataFrame(
        {
            "tile_id": [f"{number:016x}" for number in range(len(labels))],
            "path": paths or [f"{label}/{number}.png" for number, label in enumerate(labels)],
            "label": list(labels),
            "group": [f"slide-{number % 4}" for number in range(len(labels))],
            "split": None,
            "width": width,
            "height": height,
            "mode": "RGB",
            "format": "PNG",
            "compression": None,
            "source_bytes": 1000,
            "source_sha256": "0" * 64,
            "phash": "0" * 16,
        }
    )
    classes = tuple(sorted(set(labels)))
    tile_store.write_index(index, path)
    meta.Meta(
        format_version=meta.FORMAT_VERSION,
        classes=list(classes),
        tile_size=[height, width],
        mpp=0.5,
        tiles=len(labels),
        counts=pd.Series(labels).value_counts().to_dict(),
        duplicates=0,
        rejected={},
        fingerprint=tile_store.fingerprint(classes, (height, width), 0.5, index),
        made={},
    ).write(path)
    return index


def write_predictions(file: Path, index: pd.DataFrame, logits: np.ndarray, classes: Sequence[str]) -> None:
    """A predictions file of the tiles of an index."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            **{name: pa.array(index[name], pa.string()) for name in ("tile_id", "path", "group", "label")},
            "logits": pa.array([list(map(float, row)) for row in logits], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table.replace_schema_metadata({"classes": json.dumps(list(classes))}), file)


def write_run(
    path: Path,
    store: Path,
    split: Sequence[str],
    *,
    classes: Sequence[str] = CLASSES,
    kind: str = "group",
    external: Mapping[str, Path] | None = None,
    class_names: Mapping[str, Mapping[str, str]] | None = None,
    augment: str = "{input_size: 64}",
    epochs: int = 3,
) -> RunDir:
    """A run directory without predictions and checkpoints."""
    run, external = RunDir(path), external or {}
    run.attempts_dir.mkdir(parents=True)
    stores = {"tiles": store, **external}
    facts = {
        name: {"path": str(place), "fingerprint": kept.fingerprint, "tiles": kept.tiles}
        for name, place in stores.items()
        for kept in [meta.Meta.read(place)]
    }
    identity = {
        "run": path.name,
        "classes": list(classes),
        "class_names": class_names or {},
        "data": {"tiles": facts.pop("tiles"), "external": facts, "split": kind},
        "config_hash": "c0ffee" * 8,
        "versions": {"torch": "2.15", "ray": "2.60"},
        "code": "tissuegrid 0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
    }
    run.identity_file.write_text(json.dumps(identity), encoding="utf-8")
    run.config_file.write_text(f"data: {{tiles: {store}, split: {kind}}}\naugment: {augment}\n", encoding="utf-8")
    (run.attempts_dir / "0001.json").write_text('{"resumed_step": 0}', encoding="utf-8")
    run.metrics_file.write_text("".join(json.dumps(_epoch(number + 1, epochs)) + "\n" for number in range(epochs)))
    ids = pd.read_parquet(store / "index.parquet")["tile_id"]
    pd.DataFrame({"tile_id": ids, "split": list(split)}).to_parquet(run.split_file)
    return run


def _epoch(number: int, epochs: int) -> dict[str, Any]:
    part = number / epochs
    scores = {f"val/{name}": 0.3 + 0.6 * part for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    losses = {"train/loss": 2 - part, "val/loss": 2 - part / 2}
    pace = {"lr": 1e-3 * (1 - part), "tiles_per_s": 31.4, "seconds": 20.0, "world_size": 2, "attempt": 1}
    return {"epoch": number, "step": 10 * number, **losses, **scores, **pace}


def rename_to_twin(run: RunDir, folder: Path) -> None:
    """Gives the external store of the fixture `run` the training store's name, but for NONORM."""
    (folder / "outside").rename(folder / "store-nonorm")
    text = run.identity_file.read_text(encoding="utf-8")
    run.identity_file.write_text(text.replace(str(folder / "outside"), str(folder / "store-nonorm")), encoding="utf-8")


def write_model(run: RunDir, classes: int) -> torch.nn.Sequential:
    """A checkpoint of a random network, of which only the head was trained, as the run's best."""
    model, base = build(classes, seed=1), load_base("random", seed=1)
    store_base(run, base.sha256, base.data)
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    run.checkpoints_dir.mkdir(exist_ok=True)
    checkpoint = commit(run, 30, 1, head, {}, {"base_sha256": base.sha256})
    best = {"epoch": 3, "step": 30, "checkpoint": checkpoint.path.name, "metric": "val/balanced_accuracy", "value": 0.9}
    run.best_file.write_text(json.dumps(best), encoding="utf-8")
    return model.eval()


def skewed_logits(labels: Sequence[str], classes: Sequence[str], strength: float, seed: int = 0) -> np.ndarray:
    """Random logits that favour the true class."""
    draws = np.random.default_rng(seed).normal(size=(len(labels), len(classes)))
    return draws + strength * (np.asarray(labels)[:, None] == np.asarray(classes))
