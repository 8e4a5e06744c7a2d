"""What a search of 12 trials costs, against the same configurations one after the other with `trainer train`.

Everything is run as a user runs it, from the command to its end. Learning rates are drawn; on a trunk they all train
the head alone, in the other searches at depths 0 to 3, as do the single runs. What a further trial costs beside its
steps is the difference between a long search and a short one, their steps' seconds taken off. Worker-seconds of a
search are those in which trials had workers; of single runs, those of the whole command times its workers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import record
from trainer.rundir import RunDir, SearchDir, read_json
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source

SEED = 0
LR = {"loguniform": [1e-4, 1e-2]}
DEPTHS = {"choice": [0, 1, 2, 3]}
SHORT, LONG = 2, 10
"""Trials of the two searches whose difference is what a further trial costs."""
SEARCHES = {
    "search": {"space": {"optim.lr": LR, "model.unfrozen_depth": DEPTHS}, "scheduler": "none", "share_trunk": False},
    "with ASHA": {"space": {"optim.lr": LR, "model.unfrozen_depth": DEPTHS}, "scheduler": "asha", "reduction": 2},
    "on one trunk": {"space": {"optim.lr": LR}, "scheduler": "none", "share_trunk": True},
}
PEER = "single runs"


@dataclass(frozen=True)
class Cost:
    """What something took, and the best validation score that came of it."""

    seconds: float
    worker_seconds: float
    epochs: int
    best: float


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    taken: dict[str, list[Cost]] = {name: [] for name in (*SEARCHES, PEER)}
    further: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given)
        for number in range(given.rounds):
            for name, options in SEARCHES.items():
                taken[name].append(bench.search(f"{name} {number}", given.trials, options, given.epochs))
                print(f"round {number + 1} of {given.rounds}, {name}: {taken[name][-1]}", flush=True)
            taken[PEER].append(bench.single_runs(f"search {number}"))
            print(f"round {number + 1} of {given.rounds}, {PEER}: {taken[PEER][-1]}", flush=True)
            further.append(bench.further_trial(number))
            print(f"round {number + 1} of {given.rounds}, a further trial: {further[-1]:.2f} s", flush=True)
    rows = [_row(name, costs) for name, costs in taken.items()]
    options = {key: getattr(given, key) for key in ("trials", "tiles", "size", "epochs")}
    measured = {**options, "load": os.getloadavg(), "rows": rows, "further_trial": record.spread(further)}
    record.write(given.output, measured)
    Console(width=100).print(_table(given, rows))
    print(f"a further trial costs {record.spread(further)['median']:.1f} s beside its steps, on one worker at a time")


class Bench:
    """A tile store, and the configurations and runs of the measurements."""

    def __init__(self, folder: Path, given: argparse.Namespace):
        self._folder, self._given = folder, given
        manifest = write_source(folder / "source", tiles=given.tiles, size=given.size, seed=SEED)
        pack(manifest, folder / "store")

    def search(self, name: str, trials: int, options: dict[str, Any], epochs: int, **scale: Any) -> Cost:
        """A search without final runs: these cost what single runs cost."""
        asked = {"searcher": "random", "trials": trials, "final_seeds": 0, **options}
        search = SearchDir(self._folder / "runs" / name.replace(" ", "-"))
        seconds = self._command("tune", search.name, epochs, {"search": asked, "scale": {"gpu": False, **scale}})
        records = [read_json(run.trial_file) for run in search.trials()]
        assert {one["status"] for one in records} <= {"done", "stopped"}, "every trial trains"
        return Cost(
            seconds,
            sum(one["worker_seconds"] for one in records),
            sum(one["epoch"] for one in records),
            max(one["value"] for one in records),
        )

    def single_runs(self, search: str) -> Cost:
        """The configurations of a search's trials, as single runs with all that the machine has."""
        seconds, workers, epochs, best = 0.0, 0.0, 0, 0.0
        for trial in SearchDir(self._folder / "runs" / search.replace(" ", "-")).trials():
            parameters = read_json(trial.trial_file)["parameters"]
            options = {
                "optim": {"lr": parameters["optim.lr"]},
                "model": {"unfrozen_depth": parameters["model.unfrozen_depth"], "weights": "random"},
            }
            name = f"{search}-{trial.name}".replace(" ", "-")
            took = self._command("train", name, self._given.epochs, options)
            history = RunDir(self._folder / "runs" / name).read_metrics()
            seconds, workers = seconds + took, workers + took * history[-1]["world_size"]
            epochs, best = epochs + len(history), max(best, *(line["val/balanced_accuracy"] for line in history))
        return Cost(seconds, workers, epochs, best)

    def further_trial(self, number: int) -> float:
        """Seconds that a trial takes beside its training steps: one worker, one trial at a time."""
        beside: list[float] = []
        for trials in (SHORT, LONG):
            name = f"further-{trials}-{number}"
            options = {"space": {"optim.lr": LR}, "scheduler": "none", "share_trunk": False}
            cost = self.search(name, trials, options, 1, cpus_per_worker=os.cpu_count())
            runs = SearchDir(self._folder / "runs" / name).trials()
            beside.append(cost.seconds - sum(line["seconds"] for run in runs for line in run.read_metrics()))
        return (beside[1] - beside[0]) / (LONG - SHORT)

    def _command(self, command: str, name: str, epochs: int, options: dict[str, Any]) -> float:
        config = {
            "run": {"storage": str(self._folder / "runs"), "name": name},
            "data": {"tiles": str(self._folder / "store"), "split": "random", "val_fraction": 0.2},
            "augment": {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "input_size": self._given.size},
            "model": {"weights": "random"},
            "loop": {"epochs": epochs, "batch_size": 32, "keep": 2},
            **options,
        }
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "trainer", command, str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_cost", description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--tiles", type=int, default=360)
    parser.add_argument("--size", type=int, default=48, help="side of a tile, px")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path, default=record.RESULTS / "search_cost.json", help="JSON file")
    return parser.parse_args()


def _row(name: str, costs: Sequence[Cost]) -> dict[str, Any]:
    return {
        "what": name,
        "seconds": record.spread([cost.seconds for cost in costs]),
        "worker_seconds": record.spread([cost.worker_seconds for cost in costs]),
        "epochs": record.spread([cost.epochs for cost in costs]),
        "best": record.spread([cost.best for cost in costs]),
    }


def _table(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> Table:
    title = f"{given.trials} trials, {given.tiles} tiles of {given.size} px, {given.epochs} epochs at most"
    table = Table("", title=title, width=100)
    for column in ("seconds", "worker-seconds", "epochs", "best"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row[key]['median']:,.0f}" for key in ("seconds", "worker_seconds", "epochs")]
        table.add_row(row["what"], *cells, f"{row['best']['median']:.3f}")
    return table


if __name__ == "__main__":
    main()
