"""The time and memory of `python -m analysis report` on a run with a large external set, and of what it shows.

Tiles of nine classes are drawn and packed, and a network of random weights is trained on some of them for an epoch, its
head alone, and evaluated on the large set: these forward passes are timed apart, since they are training's. The network
sees small inputs, so that they are few; packing and the audit have all pixels. Beside the whole command stand 2,000
resamples of the large set's scores, and the peer: the balanced accuracy alone, resampled as scikit-learn's users do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table
from sklearn.metrics import balanced_accuracy_score

from analysis.aggregate import evaluate
from analysis.bootstrap import RESAMPLES
from analysis.collect import read_run
from benchmarks import record
from trainer.rundir import RunDir
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source

TRAINED_ON = 900
NAME, OUTSIDE = "run", "outside"
PEER_RESAMPLES = 50
"""Of which the time of 2,000 is computed."""


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        run, training = make_run(Path(folder), given.tiles, given.size, given.input)
        rows = [training]
        for _ in range(given.rounds):
            rows.append(_report(run, Path(folder, "report")))
            rows += _resampled(run)
    measured = {"tiles": given.tiles, "size": given.size, "input": given.input, "load": os.getloadavg(), "rows": rows}
    record.write(given.output, measured)
    Console(width=100).print(_table(given, rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_time", description=__doc__)
    parser.add_argument("--tiles", type=int, default=7180, help="of the external set")
    parser.add_argument("--size", type=int, default=224, help="side of a tile, px")
    parser.add_argument("--input", type=int, default=64, help="side at which the network sees it, px")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "report_time.json", help="JSON file")
    return parser.parse_args()


def make_run(folder: Path, tiles: int, size: int, input_size: int) -> tuple[RunDir, dict[str, Any]]:
    """A run that was evaluated on so many external tiles, and what that took."""
    stores = {"tiles": TRAINED_ON, OUTSIDE: tiles}
    for seed, (name, count) in enumerate(stores.items()):
        pack(write_source(folder / f"{name}-source", tiles=count, size=size, seed=seed), folder / name)
    config = {
        "run": {"storage": str(folder / "runs"), "name": NAME},
        "data": {"tiles": str(folder / "tiles"), "external": {OUTSIDE: str(folder / OUTSIDE)}, "split": "group"},
        "augment": {"input_size": input_size},
        "model": {"weights": "random"},
        "loop": {"epochs": 1},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "trainer", "train", str(file), "--debug"]
    return RunDir(folder / "runs" / NAME), _timed("training for an epoch, and all forward passes", command)


def _report(run: RunDir, out: Path) -> dict[str, Any]:
    return _timed("report", [sys.executable, "-m", "analysis", "report", str(run.path), "--out", str(out)])


def _timed(what: str, command: list[str]) -> dict[str, Any]:
    """Seconds of a command, and the most memory that its processes took together, GiB."""
    started, most = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, _memory(watched))
            time.sleep(0.1)
        assert process.returncode == 0, process.stderr and process.stderr.read()
    return {"what": what, "seconds": round(time.perf_counter() - started, 2), "peak_gib": round(most / 2**30, 2)}


def _memory(process: psutil.Process) -> int:
    try:
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def _resampled(run: RunDir) -> list[dict[str, Any]]:
    """All scores of the large set with intervals; and one score, resampled in a loop."""
    [evaluation] = [each for each in evaluate(read_run(run.path)).evaluations if each.predictions.split == OUTSIDE]
    started = time.perf_counter()
    assert evaluation.scores.overall
    ours = time.perf_counter() - started
    labels, predicted = evaluation.predictions.labels, evaluation.predictions.predicted
    rng, started = np.random.default_rng(0), time.perf_counter()
    for _ in range(PEER_RESAMPLES):
        rows = rng.integers(0, len(labels), len(labels))
        balanced_accuracy_score(labels[rows], predicted[rows])
    peer = (time.perf_counter() - started) * RESAMPLES / PEER_RESAMPLES
    return [
        {"what": f"all scores of {RESAMPLES:,} resamples", "seconds": round(ours, 2)},
        {"what": "balanced accuracy alone by scikit-learn (computed)", "seconds": round(peer, 2)},
    ]


def _table(given: argparse.Namespace, rows: list[dict[str, Any]]) -> Table:
    table = Table("", title=f"{given.tiles:,} external tiles of {given.size} px, 9 classes, seen at {given.input} px")
    for column in ("seconds", "GiB at most"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["what"], f"{row['seconds']:.1f}", f"{row['peak_gib']:.2f}" if "peak_gib" in row else "")
    return table


if __name__ == "__main__":
    main()
