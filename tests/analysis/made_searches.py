"""Search directories written by hand, as their contract says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.analysis.made_runs import CLASSES, write_predictions
from trainer.rundir import RunDir, SearchDir

SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "model.unfrozen_depth": {"choice": [0, 1, 2, 3]},
}
METRIC = "val/balanced_accuracy"
EPOCHS = 5


def index(tiles: int = 60, slides: int = 6) -> pd.DataFrame:
    """The tiles of a set, of three classes and some slides."""
    numbers = range(tiles)
    return pd.DataFrame(
        {
            "tile_id": [f"{number:016x}" for number in numbers],
            "path": [f"{number}.png" for number in numbers],
            "group": [f"slide-{number % slides}" for number in numbers],
            "label": [CLASSES[number % 3] for number in numbers],
        }
    )


def write_search(path: Path, **facts: Any) -> SearchDir:
    """A search without a trial."""
    search = SearchDir(path)
    search.trials_dir.mkdir(parents=True)
    content = {
        "search": path.name,
        "created": "2026-01-02T03:04:05+00:00",
        "state": "running",
        "space": SPACE,
        "searcher": "random",
        "scheduler": "none",
        "trials": 4,
        "final_seeds": 3,
        "seed": 0,
        "metric": METRIC,
        "mode": "max",
        "config": {},
        "data": {
            "tiles": {"path": "store", "fingerprint": "f" * 64},
            "external": {"elsewhere": {"path": "outside", "fingerprint": "e" * 64}},
            "split": "group",
        },
        "classes": list(CLASSES),
        "identity": {},
        "scale": {"workers": 2, "threads": 1, "gpu": False, "gpus_per_worker": 1.0, "concurrent": 2},
        "starts": [{"started": "2026-01-02T03:04:05+00:00", "host": "node1", "concurrent": 2}],
        "choice": None,
    }
    write_facts(search, {**content, **facts})
    search.lock_file.write_text("{}")
    return search


def write_facts(search: SearchDir, facts: Mapping[str, Any]) -> None:
    search.search_file.write_text(json.dumps(facts), encoding="utf-8")


def change(search: SearchDir, **facts: Any) -> None:
    """Replaces what search.json says."""
    write_facts(search, {**search.read(), **facts})


def write_trial(
    search: SearchDir,
    number: int,
    parameters: Mapping[str, Any],
    *,
    values: Sequence[float] = (0.5, 0.8, 0.9),
    status: str = "done",
    right: float = 0.9,
    tiles: int = 60,
    **state: Any,
) -> RunDir:
    """A trial whose epochs had these values of the metric; where it is done, with predictions."""
    return _write(search.trial(number), number, parameters, values, status, {"val": right}, tiles, state)


def write_final(
    search: SearchDir, trial: int, seed: int, parameters: Mapping[str, Any], shares: Mapping[str, float]
) -> RunDir:
    """A final run with predictions on the sets of which `shares` says how many tiles it has right."""
    final = search.final(f"{trial:04d}", seed)
    run = _write(final, trial, parameters, (0.5, 0.8, 0.9), "done", shares, 60, {"seed": seed})
    looks = [{"split": split, "checkpoint": "step", "attempt": 1} for split in shares if split != "val"]
    run.evaluations_file.write_text("".join(json.dumps(look) + "\n" for look in looks))
    return run


def _write(
    run: RunDir,
    number: int,
    parameters: Mapping[str, Any],
    values: Sequence[float],
    status: str,
    shares: Mapping[str, float],
    tiles: int,
    state: Mapping[str, Any],
) -> RunDir:
    run.path.mkdir(parents=True, exist_ok=True)
    seconds = 40.6 * len(values)
    content = {
        "trial": f"{number:04d}",
        "number": number,
        "seed": 0,
        "parameters": dict(parameters),
        "status": status,
        "epoch": len(values),
        "epochs": len(values) if status == "done" else EPOCHS,
        "value": max(values, default=None),
        "message": "",
        "notes": [],
        "started": None if status == "waiting" else "2026-01-02T03:04:05+00:00",
        "ended": None,
        "seconds": seconds,
        "worker_seconds": 2 * seconds,
        "workers": 2,
        "host": None if status == "waiting" else "node1",
        "failures": 0,
    }
    run.trial_file.write_text(json.dumps({**content, **state}), encoding="utf-8")
    if values:
        epochs = [_epoch(place, value) for place, value in enumerate(values, start=1)]
        run.metrics_file.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    if status == "done":
        for split, right in shares.items():
            made = index(tiles)
            write_predictions(run.predictions_file(split), made, mostly_right(made["label"], right, number), CLASSES)
    return run


def mostly_right(labels: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Logits by which about this share of the tiles is classified right."""
    rng = np.random.default_rng(seed)
    codes = np.array([CLASSES.index(label) for label in labels])
    shift = np.where(rng.random(len(codes)) < share, 0, rng.integers(1, len(CLASSES), len(codes)))
    return np.eye(len(CLASSES))[(codes + shift) % len(CLASSES)]


def _epoch(number: int, value: float) -> dict[str, Any]:
    scores = {f"val/{name}": value for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    losses = {"train/loss": 2.0 - value, "val/loss": 2.1 - value}
    pace = {"lr": 1e-3, "tiles_per_s": 31.44, "seconds": 40.0, "world_size": 2, "attempt": 1}
    return {"epoch": number, "step": 10 * number, **losses, **scores, **pace}


def choose(search: SearchDir, best: int, within: Sequence[int], cheapest: int, **more: Any) -> None:
    """Writes a choice into search.json."""
    names = [f"{number:04d}" for number in within]
    choice = {
        "of": 4,
        "candidates": 2,
        "split": "val",
        "best": f"{best:04d}",
        "value": 0.9,
        "standard_error": 0.0123,
        "within": names,
        "cheapest": f"{cheapest:04d}",
        "finals": [],
    }
    change(search, choice={**choice, **more})


def drawn_search(path: Path, trials: int, seed: int = 0, *, hosts: int = 1, tiles: int = 300) -> SearchDir:
    """A search of many trials, in every state, with a learning rate that matters."""
    rng = np.random.default_rng(seed)
    search = write_search(path, trials=trials)
    done: list[tuple[float, int, int]] = []
    for number in range(1, trials + 1):
        lr, depth = float(10 ** rng.uniform(-5, -2)), int(rng.integers(0, 4))
        goal = 0.55 + 0.4 * float(np.exp(-((np.log10(lr) + 3.4 + 0.2 * depth) ** 2))) + 0.02 * depth
        kind = (
            "done"
            if number <= 2
            else rng.choice(["done", "stopped", "diverged", "running", "waiting"], p=[0.5, 0.3, 0.1, 0.05, 0.05])
        )
        epochs = {"done": EPOCHS, "stopped": int(rng.integers(1, 4)), "diverged": int(rng.integers(0, 2)), "running": 2}
        count = epochs.get(str(kind), 0)
        noise = rng.normal(0, 0.01, count)
        values = [float(np.clip(goal * (1 - 0.5 ** (epoch + 1)) + step, 0, 1)) for epoch, step in enumerate(noise)]
        state = {"message": "training diverged at step 3: loss is nan"} if kind == "diverged" else {}
        write_trial(
            search,
            number,
            {"optim.lr": lr, "model.unfrozen_depth": depth},
            values=values,
            status=str(kind),
            right=max(values, default=0.0),
            tiles=tiles,
            host=f"gpu-node-{number % hosts:03d}.cluster" if kind != "waiting" else None,
            **state,
        )
        if kind == "done":
            done.append((max(values), number, depth))
    best = max(done)
    within = [each for each in sorted(done, reverse=True) if each[0] >= best[0] - 0.0123]
    cheapest = min(within, key=lambda each: (each[2], -each[0]))
    choose(search, best[1], [each[1] for each in within], cheapest[1], of=trials - 2, candidates=len(done))
    return search
