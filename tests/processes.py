"""Several gloo processes, as workers are, without Ray: to compare ranks, and to kill them all at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.conftest import REPOSITORY
from trainer.loop import Outcome
from trainer.plan import Plan
from trainer.ranks import Ranks
from trainer.rundir import Json
from trainer.worker import work

LIMIT_S = 300.0


def on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, limit_s: float = LIMIT_S
) -> list[Any] | None:
    """`function(ranks, *arguments)` on each of `world_size` processes; the answers by rank, None if it killed them."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.pkl"
        task.write_bytes(pickle.dumps((world_size, function, arguments)))
        command = [sys.executable, "-m", "tests.processes", str(task)]
        group = subprocess.run(command, cwd=REPOSITORY, start_new_session=True, check=False, timeout=limit_s)
        if group.returncode == -signal.SIGKILL:
            return None
        assert group.returncode == 0
        return [pickle.loads((Path(folder) / f"{rank}.pkl").read_bytes()) for rank in range(world_size)]


def train_killed_at(plan: Plan, step: int | None, limit_s: float = LIMIT_S) -> Outcome | None:
    """Trains with all of a plan's workers; at `step` every process is killed by SIGKILL, and the answer is None."""
    answers = on_ranks(plan.scale.workers, _work, plan, step, limit_s=limit_s)
    return None if answers is None else answers[0]


def _work(ranks: Ranks, plan: Plan, step: int | None) -> Outcome:
    def report(message: Json) -> bool:
        if step is not None and message.get("step", 0) >= step:
            os.killpg(0, signal.SIGKILL)
        return False

    return work(plan, ranks, report)


def _group(task: Path) -> None:
    """The parent of the ranks: forked from here, they need not import torch again."""
    world_size, function, arguments = pickle.loads(task.read_bytes())
    context = multiprocessing.get_context("fork")
    rest = (world_size, task.parent, function, arguments)
    running = [context.Process(target=_rank, args=(rank, *rest)) for rank in range(world_size)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in running))


def _rank(rank: int, world_size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=limit)
    ranks = Ranks.of_process_group(torch.device("cpu"), timeout_s=60)
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(function(ranks, *arguments)))
    dist.destroy_process_group()


if __name__ == "__main__":
    _group(Path(sys.argv[1]))
