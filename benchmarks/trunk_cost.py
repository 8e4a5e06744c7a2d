"""What many heads on one trunk cost: learning rates trained together, against one of them alone, in turn.

Each measurement is a process of its own, which trains runs of depth 0 from their first step to their predictions, as a
search's trial does. The peer of N heads together is N single runs: N times what one costs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    if given.store:
        print(f"{measure(given.store, given.heads, given.epochs, given.size):.3f} s")
        return
    taken: dict[str, list[float]] = {"one": [], "together": []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_source(Path(folder, "source"), tiles=given.tiles, size=given.size, seed=SEED)
        pack(manifest, Path(folder, "store"))
        for number in range(given.rounds):
            for name, heads in (("one", 1), ("together", given.heads)):
                taken[name].append(_in_a_process(Path(folder, "store"), heads, given))
                print(f"round {number + 1} of {given.rounds}, {heads} heads: {taken[name][-1]:.1f} s", flush=True)
    ratios = [many / one for one, many in zip(taken["one"], taken["together"], strict=True)]
    options = {key: getattr(given, key) for key in ("heads", "tiles", "size", "epochs")}
    seconds = {name: record.spread(values) for name, values in taken.items()}
    record.write(given.output, {**options, "seconds": seconds, "times_one": record.spread(ratios)})
    Console().print(_table(given, seconds, record.spread(ratios)))


def measure(store: Path, heads: int, epochs: int, size: int) -> float:
    """Seconds that `heads` learning rates take together in this process, begun and resolved beforehand."""
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
        started = time.perf_counter()
        outcomes = work_alone(plans, lambda _: False)
        assert {outcome.status for outcome in outcomes} == {"done"}
        return time.perf_counter() - started


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


def _in_a_process(store: Path, heads: int, given: argparse.Namespace) -> float:
    options = [f"--heads={heads}", f"--epochs={given.epochs}", f"--size={given.size}"]
    command = [sys.executable, "-m", "benchmarks.trunk_cost", str(store), *options]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0])


def _table(given: argparse.Namespace, seconds: dict[str, dict[str, float]], times: dict[str, float]) -> Table:
    title = f"Training at depth 0, {given.tiles} tiles of {given.size} px, {given.epochs} epochs: seconds"
    table = Table("what", title=title, width=80)
    for column in ("median", "lowest", "highest", "times one"):
        table.add_column(column, justify="right")
    one, many = seconds["one"], seconds["together"]
    ends = ("median", "lowest", "highest")
    table.add_row("one run", *(f"{one[end]:.1f}" for end in ends), "1")
    table.add_row(f"{given.heads} together", *(f"{many[end]:.1f}" for end in ends), f"{times['median']:.2f}")
    table.add_row(
        f"{given.heads} single runs (computed)", *(f"{given.heads * one[e]:.1f}" for e in ends), f"{given.heads}"
    )
    return table


if __name__ == "__main__":
    main()
