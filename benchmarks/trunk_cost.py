"""What many heads on one trunk cost: learning rates trained together, against one of them alone, in turn.

Each measurement is a process of its own, which trains runs of depth 0 from their first step to their predictions, as a
search's trial does. The peer of N heads together is N single runs: N times what one costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import record
from trainer.config import Config
from trainer.plan import make_plan, write_run
from trainer.scale import this_machine
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source
from trainer.worker import work_alone

SEED = 0
LOWEST, HIGHEST = 1e-5, 1e-2
CLOCKS = ("seconds", "CPU seconds")
"""The second hardly depends on what else the machine does."""


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    if given.store:
        print(*measure(given.store, given.heads, given.epochs, given.size))
        return
    taken: dict[int, list[tuple[float, float]]] = {1: [], given.heads: []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_source(Path(folder, "source"), tiles=given.tiles, size=given.size, seed=SEED)
        pack(manifest, Path(folder, "store"))
        for number in range(given.rounds):
            for heads, measured in taken.items():
                measured.append(_in_a_process(Path(folder, "store"), heads, given))
                wall, processor = measured[-1]
                print(
                    f"round {number + 1} of {given.rounds}, heads: {heads}, {wall:.1f} s, {processor:.1f} CPU s",
                    flush=True,
                )
    rows = [_row(clock, *(_times(taken[heads], place) for heads in taken)) for place, clock in enumerate(CLOCKS)]
    options = {key: getattr(given, key) for key in ("heads", "tiles", "size", "epochs")}
    record.write(given.output, {**options, "load": os.getloadavg(), "rows": rows})
    Console(width=100).print(_table(given, rows))


def measure(store: Path, heads: int, epochs: int, size: int) -> tuple[float, float]:
    """Seconds and CPU seconds that `heads` learning rates take together in this process, begun beforehand."""
    plans = []
    with tempfile.TemporaryDirectory() as storage:
        for number, rate in enumerate(np.geomspace(LOWEST, HIGHEST, heads)):
            config = Config.model_validate(
                {
                    "run": {"storage": storage, "name": f"head-{number}"},
                    "data": {"tiles": store, "split": "random"},
                    "augment": {"input_size": size},
                    "model": {"weights": "random", "unfrozen_depth": 0},
                    "optim": {"lr": float(rate)},
                    "loop": {"epochs": epochs, "batch_size": 64, "keep": 2},
                    "scale": {"workers": 1, "gpu": False},
                }
            )
            plan, data, base = make_plan(config, this_machine())
            write_run(plan, data, base)
            plans.append(plan)
        started, worked = time.perf_counter(), time.process_time()
        outcomes = work_alone(plans, lambda _: False)
        assert {outcome.status for outcome in outcomes} == {"done"}
        return time.perf_counter() - started, time.process_time() - worked


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trunk_cost", description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="take one measurement on this tile store, and no more")
    parser.add_argument("--heads", type=int, default=16, help="learning rates that train together")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--size", type=int, default=96, help="side of a tile, px")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=record.RESULTS / "trunk_cost.json", help="JSON file")
    return parser.parse_args()


def _in_a_process(store: Path, heads: int, given: argparse.Namespace) -> tuple[float, float]:
    options = [f"--heads={heads}", f"--epochs={given.epochs}", f"--size={given.size}"]
    command = [sys.executable, "-m", "benchmarks.trunk_cost", str(store), *options]
    wall, processor = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-2:]
    return float(wall), float(processor)


def _times(measured: Sequence[tuple[float, float]], place: int) -> list[float]:
    return [both[place] for both in measured]


def _row(clock: str, one: list[float], many: list[float]) -> dict[str, Any]:
    """Many heads against one, round by round."""
    times = [together / alone for alone, together in zip(one, many, strict=True)]
    return {
        "clock": clock,
        "one": record.spread(one),
        "together": record.spread(many),
        "times_one": record.spread(times),
    }


def _table(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("", title=f"Depth 0, {given.tiles} tiles of {given.size} px, {given.epochs} epochs", width=100)
    for column in ("one run", f"{given.heads} together", "times one", f"{given.heads} single runs (computed)"):
        table.add_column(column, justify="right")
    for row in rows:
        apart = f"{given.heads * row['one']['median']:.0f}"
        table.add_row(row["clock"], *(_shown(row[key]) for key in ("one", "together", "times_one")), apart)
    return table


def _shown(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.2f} ({spread['lowest']:.2f}-{spread['highest']:.2f})"


if __name__ == "__main__":
    main()
