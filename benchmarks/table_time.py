"""The time of `python -m analysis table` on a search of 200 trials, as a person waits for it: the whole process.

Of the trials, made for the purpose, half are done, with predictions of `--tiles` tiles of nine classes from 50 slides,
and half were stopped early. Beside it: the same command on an empty search, which is what starting costs, and the
peer, a script that reads the same files with pandas and prints them, as one would write it for the day.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import record
from trainer.predictions import write_predictions
from trainer.rundir import SearchDir, write_json, write_json_lines

CLASSES = [f"C{number}" for number in range(9)]
SLIDES = 50
EPOCHS = 10
SPACE = {"optim.lr": {"loguniform": [1e-5, 1e-2]}, "model.unfrozen_depth": {"choice": [0, 1, 2, 3]}}
PEER = """
import json, sys
from pathlib import Path
import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score
rows = []
for folder in sorted(Path(sys.argv[1], "trials").iterdir()):
    trial = json.loads((folder / "trial.json").read_text())
    last = pd.read_json(folder / "metrics.jsonl", lines=True).iloc[-1]
    row = {**trial["parameters"], "status": trial["status"], "loss": last["val/loss"], "rate": last["tiles_per_s"]}
    if (folder / "predictions" / "val.parquet").exists():
        table = pd.read_parquet(folder / "predictions" / "val.parquet")
        said = np.array(json.loads(sys.argv[2]))[np.stack(table["logits"]).argmax(axis=1)]
        row["accuracy"] = balanced_accuracy_score(table["label"], said)
    rows.append(row)
print(pd.DataFrame(rows).sort_values("accuracy").to_string())
"""


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        full = make_search(Path(folder, "full"), given.trials, given.tiles)
        empty = make_search(Path(folder, "empty"), 0, 0)
        for name, measured in _measured(full, empty, given.rounds):
            seconds.setdefault(name, []).append(measured)
    rows = [{"what": name, "seconds": record.spread(times)} for name, times in seconds.items()]
    record.write(given.output, {"trials": given.trials, "tiles": given.tiles, "times": rows})
    Console(width=100).print(_table(seconds, given.trials))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table_time", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of the search")
    parser.add_argument("--tiles", type=int, default=2000, help="of the validation split")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "table_time.json", help="JSON file")
    return parser.parse_args()


def make_search(path: Path, trials: int, tiles: int) -> SearchDir:
    """A search directory with the files that a table is made of."""
    search, rng = SearchDir(path), np.random.default_rng(0)
    search.trials_dir.mkdir(parents=True)
    data = {"tiles": {}, "external": {}, "split": "group"}
    facts = {"search": path.name, "state": "done", "space": SPACE, "trials": trials, "metric": "val/balanced_accuracy"}
    write_json(search.search_file, {**facts, "mode": "max", "data": data, "choice": None})
    labels = pd.Series(rng.choice(CLASSES, tiles)) if tiles else pd.Series(dtype=str)
    names = pd.Series([f"{place:016x}" for place in range(tiles)])
    slides = pd.Series([f"slide-{place % SLIDES}" for place in range(tiles)])
    index = pd.DataFrame({"tile_id": names, "path": names, "group": slides, "label": labels})
    for number in range(1, trials + 1):
        run, is_done = search.trial(number), number % 2 == 0
        run.path.mkdir()
        epochs = [_epoch(epoch, rng) for epoch in range(1, (EPOCHS if is_done else EPOCHS // 3) + 1)]
        write_json_lines(run.metrics_file, epochs)
        parameters = {"optim.lr": float(10 ** rng.uniform(-5, -2)), "model.unfrozen_depth": int(rng.integers(4))}
        state = {"trial": run.name, "number": number, "seed": 0, "parameters": parameters, "host": "node1"}
        state |= {"status": "done" if is_done else "stopped", "epoch": len(epochs), "epochs": EPOCHS}
        best = max(epoch["val/balanced_accuracy"] for epoch in epochs)
        write_json(run.trial_file, {**state, "value": best, "seconds": 81.2, "worker_seconds": 162.4, "workers": 2})
        if is_done:
            logits = rng.normal(size=(tiles, len(CLASSES))) + 2 * (index[["label"]].to_numpy() == np.array(CLASSES))
            write_predictions(run.predictions_file("val"), index, logits.astype(np.float32), CLASSES, "step")
    return search


def _epoch(number: int, rng: np.random.Generator) -> dict[str, float]:
    scores = {f"val/{name}": float(rng.random()) for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss")}
    pace = {"train/loss": float(rng.random()), "lr": 1e-3, "tiles_per_s": 812.5, "seconds": 8.1}
    return {"epoch": number, "step": 100 * number, **scores, **pace, "world_size": 2, "attempt": 1}


def _measured(full: SearchDir, empty: SearchDir, rounds: int) -> Iterator[tuple[str, float]]:
    """Every command once, then every command once more, ...: what else the machine does hits all alike."""
    commands = {
        "table": ["-m", "analysis", "table", str(full.path)],
        "table of no trial": ["-m", "analysis", "table", str(empty.path)],
        "pandas": ["-c", PEER, str(full.path), json.dumps(CLASSES)],
    }
    for _ in range(rounds):
        for name, command in commands.items():
            yield name, _seconds([sys.executable, *command])


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _table(seconds: dict[str, list[float]], trials: int) -> Table:
    table = Table("what", title=f"A table of {trials} trials, seconds", box=box.SIMPLE)
    for column in ("median", "lowest", "highest"):
        table.add_column(column, justify="right")
    for name, times in seconds.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(times), min(times), max(times))))
    return table


if __name__ == "__main__":
    main()
