"""Workers that are killed, and workers that are suspended, while they train."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.command import Command, wait_until
from tests.conftest import MakeConfig
from tests.faults.ledger import Fault
from tests.faults.ray_processes import ended, workers
from tests.faults.training import EVERY, STEPS, TIMEOUT_S, Training
from tests.processes import train_killed_at
from tests.runs import wait_for_step, weights
from tests.trainer.test_worker import start
from trainer.checkpoint import newest_step

pytestmark = pytest.mark.slow

ALL_KILLED, ONE_KILLED = 16, 4
GOES_ON = "goes on; at most one checkpoint interval redone; final weights bit-identical"
ABORTED_S, AGAIN_S = TIMEOUT_S + 30, TIMEOUT_S + 90
LONG: dict[str, object] = {"loop.epochs": 4, "loop.checkpoint_every": 3, "model.unfrozen_depth": 1, "scale.workers": 2}
LONG_STEPS = 24


@pytest.mark.fault(1, f"SIGKILL of all workers at {ALL_KILLED} random steps, without Ray, then started again", GOES_ON)
def test_all_workers_killed_again_and_again(fault: Fault, make_config: MakeConfig) -> None:
    undisturbed, disturbed = (start(make_config(**LONG, **{"run.name": name})) for name in ("undisturbed", "disturbed"))
    assert train_killed_at(undisturbed, None).status == "done"
    redone = []
    for step in sorted(random.sample(range(1, LONG_STEPS), ALL_KILLED)):
        print(f"killed at step {step}")
        assert train_killed_at(disturbed, step) is None
        fault.times += 1
        redone.append(step - newest_step(disturbed.run))
    assert train_killed_at(disturbed, None).status == "done"
    assert len(disturbed.run.attempts()) == fault.times + 1
    assert max(redone) <= 3
    assert weights(disturbed.run, LONG_STEPS) == weights(undisturbed.run, LONG_STEPS)
    fault.figure = f"{fault.times} of {fault.times} went on; at most {max(redone)} of 3 steps redone; bit-identical"


@pytest.mark.fault(1, f"SIGKILL of one worker at {ONE_KILLED} random steps of one run on Ray", GOES_ON)
@pytest.mark.usefixtures("nothing_is_left")
def test_one_worker_killed_again_and_again(
    fault: Fault, training: Training, final_weights: str, tmp_path: Path
) -> None:
    """Nobody starts it again. Ray allows for three failures between two steps, and these are four."""
    command, run, took = Command(training.config), training.run, []
    for attempt, step in enumerate(sorted(random.sample(range(1, STEPS - 10), ONE_KILLED)), 1):
        wait_for_step(run, attempt, step)
        time.sleep(random.uniform(0, 1))  # it may be anywhere then: in a step, a commit, an evaluation
        committed, victim = newest_step(run), random.choice(workers(tmp_path))
        print(f"killed at step {committed}: {victim.pid} of {run.attempts()[attempt]}")
        victim.kill()
        fault.times += 1
        took.append(wait_for_step(run, attempt + 1, 1))
        assert run.attempts()[attempt + 1]["resumed_step"] >= committed
    code, output = command.end()
    assert code == 0, output
    assert weights(run, STEPS) == final_weights
    fault.figure = (
        f"{fault.times} of {fault.times} went on from the newest checkpoint (one every {EVERY} steps); the next one "
        f"after {min(took):.0f} to {max(took):.0f} s; bit-identical"
    )


@pytest.mark.fault(
    13,
    f"SIGSTOP of one rank (scale.timeout_s {TIMEOUT_S})",
    f"aborted within {ABORTED_S} s (limit + 30), training again within {AGAIN_S} s (limit + 90)",
)
@pytest.mark.usefixtures("nothing_is_left")
def test_a_suspended_worker(fault: Fault, training: Training, final_weights: str, tmp_path: Path) -> None:
    """The process is there, its connections stand, and it does nothing."""
    command, run, aborted, again = Command(training.config), training.run, [], []
    for attempt in (1, 2):
        wait_for_step(run, attempt, 4 * attempt)
        suspended, other = random.sample(workers(tmp_path), 2)
        print(f"suspended {suspended.pid} of {run.attempts()[attempt]}")
        suspended.suspend()
        fault.times += 1
        aborted.append(wait_until(lambda gone=other: ended(gone), "the end of the other rank"))  # type: ignore[misc]
        again.append(aborted[-1] + wait_for_step(run, attempt + 1, 1))
    code, output = command.end()
    assert code == 0, output
    assert weights(run, STEPS) == final_weights
    assert max(aborted) < ABORTED_S
    assert max(again) < AGAIN_S
    fault.figure = f"aborted after {max(aborted):.0f} s, the next checkpoint after {max(again):.0f} s; bit-identical"
