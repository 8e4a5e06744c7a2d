"""The program itself is killed, and started again."""

from __future__ import annotations

import random

import pytest

from tests.command import Command
from tests.faults.ledger import Fault
from tests.faults.training import STEPS, Training
from tests.runs import wait_for_step, weights
from trainer.checkpoint import newest_step

KILLS = 2


@pytest.mark.slow
@pytest.mark.fault(4, "SIGKILL of the driver, the same command at once", "goes on, bit-identical")
@pytest.mark.usefixtures("nothing_is_left")
def test_the_driver_is_killed(fault: Fault, training: Training, final_weights: str) -> None:
    """Its workers may live on for a moment, while the next ones begin."""
    run, committed = training.run, [0]
    for attempt, step in enumerate(sorted(random.sample(range(1, STEPS - 10), KILLS)), 1):
        command = Command(training.config)
        wait_for_step(run, attempt, step)
        committed.append(newest_step(run))
        print(f"killed at step {committed[-1]}")
        command.process.kill()
        command.end()
        fault.times += 1
    code, output = Command(training.config).end()
    assert code == 0, output
    resumed = [record["resumed_step"] for record in run.attempts().values()]
    assert all(step >= before for step, before in zip(resumed, committed, strict=True))
    assert weights(run, STEPS) == final_weights
    fault.figure = f"{fault.times} of {fault.times} went on from the newest checkpoint; bit-identical"
