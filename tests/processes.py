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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.conftest import REPOSITORY
from trainer.plan import Plan
from trainer.ranks import Ranks
from trainer.rundir import Json
from trainer.worker import Outcome, work


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(ranks, *arguments)` on each of `world_size` processes of one thread; the answers by rank."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        tasks = [(rank, world_size, folder, function, arguments) for rank in range(world_size)]
        running = [context.Process(target=_rank, args=task) for task in tasks]
        for process in running:
            process.start()
        for process in running:
            process.join()
        assert [process.exitcode for process in running] == [0] * world_size
        return [pickle.loads((Path(folder) / f"{rank}.pkl").read_bytes()) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    ranks = Ranks.of_process_group(torch.device("cpu"), timeout_s=60)
    answer = function(ranks, *arguments)
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


def train_killed_at(plan: Plan, step: int | None) -> Outcome | None:
    """Trains with all of a plan's workers; at `step` every process is killed by SIGKILL, and the answer is None."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.pkl"
        file.write_bytes(pickle.dumps((plan, step)))
        command = [sys.executable, "-m", "tests.processes", str(file)]
        group = subprocess.run(command, cwd=REPOSITORY, start_new_session=True, check=False)
        outcome = Path(folder) / "outcome.pkl"
        if step is not None:
            assert group.returncode == -signal.SIGKILL
            return None
        assert group.returncode == 0
        answer = pickle.loads(outcome.read_bytes())
        assert isinstance(answer, Outcome)
        return answer


def _work(ranks: Ranks, plan: Plan, step: int | None) -> Outcome:
    def report(message: Json) -> bool:
        if step is not None and message.get("step", 0) >= step:
            os.killpg(0, signal.SIGKILL)
        return False

    return work(plan, ranks, report)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    the_plan, the_step = pickle.loads(given.read_bytes())
    (given.parent / "outcome.pkl").write_bytes(pickle.dumps(on_ranks(the_plan.workers, _work, the_plan, the_step)[0]))
