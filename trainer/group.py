"""Work on a group of Ray Train workers, watched from this process: a run, or several on one trunk, or predictions."""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.board import with_board
from trainer.checkpoint import newest_step
from trainer.loop import Outcome
from trainer.plan import Plan
from trainer.ranks import Ranks
from trainer.remote import on_worker
from trainer.rundir import Json, Workplace
from trainer.scale import Scale
from trainer.wording import counted, joined
from trainer.worker import Report, work_begun

MAX_FAILURES = 3
DIED = "worker process has died"
"""What Ray says of a process that was killed."""


@dataclass(frozen=True)
class GroupTask:
    """What a group of workers does."""

    act: Callable[[Ranks, Report], list[Outcome]]
    """On every worker; it travels as bytes that only workers open. Rank 0's outcomes count."""
    outcomes: int
    scale: Scale
    timeout_s: int
    place: Workplace
    """Ray keeps its own state there; a path that all nodes see."""
    progress: Callable[[], object]
    """How far it is, as this process sees it."""

    def all_end(self, outcome: Outcome) -> list[Outcome]:
        """How everything ended where it ended alike."""
        return [outcome] * self.outcomes


def train_on_group(
    plans: Sequence[Plan], show: Callable[[Json], object], asked: Callable[[], bool], *, waits: bool = False
) -> list[Outcome]:
    """Trains a run, or several together (as `work_together` has them), on a group; otherwise as `work_on_group`."""
    first = plans[0]
    act, progress = partial(work_begun, list(plans)), partial(_steps, plans)
    task = GroupTask(act, len(plans), first.scale, first.config.scale.timeout_s, first.run, progress)
    return work_on_group(task, show, asked, waits=waits)


def _steps(plans: Sequence[Plan]) -> list[int]:
    return [newest_step(plan.run) for plan in plans]


def work_on_group(
    task: GroupTask, show: Callable[[Json], object], asked: Callable[[], bool], *, waits: bool = False
) -> list[Outcome]:
    """Does something on workers of the Ray that this process is connected to.

    Args:
        task: what, and with how many.
        show: is given every message of the workers.
        asked: whether they shall stop; is called again and again.
        waits: whether to wait for room until there is some, as trials do that others may keep it from for hours.
    """
    import ray

    try:
        with ray_state(task.place) as state:
            return with_board(partial(_outcomes, task, asked if waits else None, state), show, asked)
    except ray.exceptions.RayError as error:
        return task.all_end(_ray_ended(error))


def _outcomes(task: GroupTask, given_up: Callable[[], bool] | None, state: Path, board: Any) -> list[Outcome]:
    """How Ray Train ended, whatever it did. Failures count since the last progress: a long run may see many.

    Without room it is tried again until that is given up; where nobody can say so, a few times.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    while True:
        before = task.progress()
        try:
            return _fit(task, MAX_FAILURES if given_up is None else 0, state, board)
        except ControllerError as error:
            if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                return task.all_end(_ray_ended(error))
            if given_up is None:
                return task.all_end(_no_room(task.scale))
            if given_up():
                return task.all_end(Outcome("stopped", "while it waited for room"))
        except WorkerGroupError as error:
            if task.progress() == before:
                return task.all_end(Outcome("failed", _failed(error)))
        except Exception as error:  # whatever Ray Train raises, it ends no program that has more to do
            return task.all_end(_ray_ended(error))


def _failed(error: Any) -> str:
    """What workers failed with (a WorkerGroupError). Where one was killed, the others only miss it."""
    times = f"workers failed {MAX_FAILURES + 1} times, the last time"
    killed = [str(rank) for rank, failure in sorted(error.worker_failures.items()) if DIED in str(failure)]
    if not killed:
        return f"{times} with: {error}"
    return (
        f"{times} since the process of rank {joined(killed)} was killed: out of memory, by the system (`dmesg` tells; "
        "give a worker more, or lower loop.micro_batch), by somebody, or by its own crash; the same command goes on"
    )


def _ray_ended(error: Exception) -> Outcome:
    return Outcome("failed", f"Ray ended in the middle of the run ({error}); the same command goes on")


def _no_room(scale: Scale) -> Outcome:
    fewer = f"; with --scale.workers 1:{scale.workers} it goes on with fewer" if scale.least > 1 else ""
    return Outcome(
        "failed",
        f"there is no room for {counted(scale.least, 'worker')}: perhaps a node was lost. The same command goes on "
        f"where there is{fewer}",
    )


def _fit(task: GroupTask, vain_waits: int, state: Path, board: Any) -> list[Outcome]:
    """Acts on every worker of a Ray Train group, started again where one dies; rank 0's outcomes.

    Where there is no room, it waits in vain `vain_waits` times before that is an error.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scale, timeout_s = task.scale, task.timeout_s
    if scale.least < scale.workers or vain_waits == 0:
        # A group waits this long for the node that it has lost before it goes on with fewer, or for room before it asks
        # whether to stop; Ray would wait a minute.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    given = {"act": pickle.dumps(task.act), "timeout_s": timeout_s, "umask": umask(), "board": board}
    trainer = TorchTrainer(
        on_worker,
        train_loop_config=given,
        torch_config=TorchConfig(backend="nccl" if scale.gpu else "gloo", timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=scale.workers if scale.least == scale.workers else (scale.least, scale.workers),
            use_gpu=scale.gpu,
            resources_per_worker={"CPU": scale.threads, **({"GPU": scale.gpus_per_worker} if scale.gpu else {})},
            placement_strategy="PACK" if scale.gpu else "SPREAD",
        ),
        # Ray's own state is disposable: ours are the checkpoints. So its run has a new name each time.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(state),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=vain_waits),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcomes = trainer.fit().return_value
    assert isinstance(outcomes, list), "every worker answers with outcomes"
    return outcomes


@contextmanager
def ray_state(place: Workplace) -> Iterator[Path]:
    """Where Ray keeps its own state while the context lasts: whoever takes the place over has another folder there."""
    shutil.rmtree(place.ray_dir, ignore_errors=True)  # of starts that were killed
    state = place.ray_dir / uuid.uuid4().hex
    try:
        yield state
    finally:
        shutil.rmtree(state, ignore_errors=True)
        with suppress(OSError):
            place.ray_dir.rmdir()


def umask() -> int:
    """This process's, which the system only tells in exchange for another."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
