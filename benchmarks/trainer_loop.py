"""Tissuegrid's own loop on CPU workers without Ray: store, loader, augmentation, step, as a run takes them."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.seed_loop import BATCH_SIZE, WARM_UP
from trainer.config import Config
from trainer.data import open_data
from trainer.loop import Hooks, Position, Training, train_epoch
from trainer.plan import Plan, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import Json
from trainer.scale import this_machine
from trainer.tiles.loader import TileSet
from trainer.worker import make_learners

NORMS = ("frozen", "local")
PRECISIONS = ("fp32", "bf16")


def measure(store: Path, depth: int, steps: int, workers: int, norm: str, precision: str) -> float:
    """Tiles a second over `steps` steps, of `workers` processes that share the machine's cores."""
    with tempfile.TemporaryDirectory() as folder:
        plan = begin(store, depth, workers, norm, precision, Path(folder))
        if workers == 1:
            return _rate(plan, Ranks(), steps)
        spawn(_rank, (plan, folder, steps), workers)  # type: ignore[no-untyped-call]
        return float(Path(folder, "rate").read_text())


def begin(store: Path, depth: int, workers: int, norm: str, precision: str, storage: Path) -> Plan:
    """The run directory of a run that starts from random weights, and its plan."""
    config = Config.model_validate(
        {
            "run": {"storage": storage},
            "data": {"tiles": store},
            "model": {"weights": "random", "unfrozen_depth": depth, "norm": norm},
            "loop": {"batch_size": BATCH_SIZE, "precision": precision},
            "scale": {"workers": workers, "gpu": False},
        }
    )
    plan, data, base = make_plan(config, this_machine())
    write_run(plan, data, base)
    return plan


def _rank(rank: int, plan: Plan, folder: str, steps: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=plan.scale.workers)
    ranks = Ranks.of_process_group(torch.device("cpu"), plan.config.scale.timeout_s)
    rate = _rate(plan, ranks, steps)
    if ranks.first:
        Path(folder, "rate").write_text(str(rate))
    dist.destroy_process_group()


def _rate(plan: Plan, ranks: Ranks, steps: int) -> float:
    """Tiles a second of all ranks; 0 on all but the first, which alone hears of each step."""
    torch.set_num_threads(plan.scale.threads)
    data = open_data(plan.config, plan.run.split_file)
    trunk, (learner,) = make_learners([plan], data, ranks)
    ended: list[float] = []

    def report(_: Json) -> bool:
        ended.append(time.perf_counter())
        return False

    tiles = _repeated(data.tiles("train"), (WARM_UP + steps) * BATCH_SIZE)
    training = Training(learner, plan.config, Position(), Hooks(report, lambda _: None, attempt=1))
    train_epoch(trunk, [training], tiles, ranks, report)
    return steps * BATCH_SIZE / (ended[-1] - ended[WARM_UP - 1]) if ranks.first else 0.0


def _repeated(tiles: TileSet, count: int) -> TileSet:
    """`count` tiles: the set again and again, so that an epoch has only whole batches."""
    members = np.resize(np.arange(len(tiles)), count)
    return TileSet(tiles.tiles, tiles.rows[members], tiles.labels[members])


def main() -> None:
    """Prints tiles/s."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer_loop", description=__doc__)
    parser.add_argument("store", type=Path, help="tile store")
    parser.add_argument("--depth", type=int, choices=range(6), default=0)
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed, after one that is not")
    parser.add_argument("--workers", type=int, default=1, help="processes that train together")
    parser.add_argument("--norm", choices=NORMS, default="frozen", help="BatchNorm where layers learn")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    given = parser.parse_args()
    rate = measure(given.store, given.depth, given.steps, given.workers, given.norm, given.precision)
    print(f"{rate:.3f} tiles/s")


if __name__ == "__main__":
    main()
