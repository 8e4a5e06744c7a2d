"""How a group of workers goes on where Ray Train does not. Ray's own errors, raised as Ray Train raises them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from trainer import group
from trainer.loop import Outcome
from trainer.rundir import RunDir
from trainer.scale import Scale

NO_ROOM = ControllerError(WorkerGroupStartupTimeoutError(num_workers=4))


@pytest.mark.parametrize(
    ("given_up", "error", "expected"),
    [
        (lambda: False, NO_ROOM, "done"),
        (lambda: True, NO_ROOM, "stopped"),
        (None, NO_ROOM, "failed"),
        (lambda: False, ControllerError(ValueError("another")), "failed"),
    ],
    ids=["waits", "waits, and is asked to stop", "a run", "not for want of room"],
)
def test_a_trial_waits_for_room_and_a_run_does_not(
    monkeypatch: pytest.MonkeyPatch, given_up: Callable[[], bool] | None, error: Exception, expected: str
) -> None:
    errors = [error] * 10

    def fit(*_: object) -> list[Outcome]:
        if errors:
            raise errors.pop()
        return [Outcome("done")]

    monkeypatch.setattr(group, "_fit", fit)
    scale = Scale(workers=4, least=4, gpu=False, gpus_per_worker=0, threads=1)
    task = group.GroupTask(lambda *_: [], 1, scale, 60, RunDir(Path("run")), lambda: 0)
    (outcome,) = group._outcomes(task, given_up, Path("state"), None)
    assert outcome.status == expected
