"""Trials that are stopped early, and trials of several workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.search.searches import (
    Command,
    search_of,
    trials_of,
    wait_until,
)
from trainer.checkpoint import listed
from trainer.rundir import RunDir, read_json


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_bad_trials_are_stopped_early_and_their_place_is_free(make: Callable[..., Path], scheduler: str) -> None:
    """Learning rates that do nothing, beside ones that learn: the first are stopped, after their epochs of grace."""
    options = {
        "search.trials": 8,
        "search.scheduler": scheduler,
        "search.searcher": "grid",
        "search.space": {"optim.lr": {"grid": [3e-3, 2e-3, 1e-3, 1e-2, 1e-7, 2e-7, 3e-7, 4e-7]}},
        "search.reduction": 2,
        "search.grace_epochs": 2,
        "loop.epochs": 8,
        "loop.best_metric": "val/loss",
    }
    config = make(**options)
    most = 0
    command = Command(config)
    while command.process.poll() is None:
        most = max(most, sum(one["status"] == "running" for one in trials_of(config)))
        time.sleep(0.2)
    code, output = command.end()
    assert code == 0, output
    by_rate = {one["parameters"]["optim.lr"]: one for one in trials_of(config)}
    stopped = [rate for rate, one in by_rate.items() if one["status"] == "stopped"]
    assert {1e-7, 2e-7, 3e-7, 4e-7} <= set(stopped)
    for one in by_rate.values():
        assert one["status"] in ("done", "stopped")
        if one["status"] == "stopped":
            assert 2 <= one["epoch"] < 8
            assert f"after epoch {one['epoch']}" in one["message"]
            assert listed(RunDir(search_of(config).trials_dir / one["run"]))
    assert most <= read_json(search_of(config).search_file)["scale"]["concurrent"]
    assert by_rate[3e-3]["status"] == "done"
    choice = search_of(config).read()["choice"]
    assert choice["candidates"] == 8 - len(stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_several_workers_a_trial_train_what_one_does_and_never_wait_for_each_other(make: Callable[..., Path]) -> None:
    """Four trials of two workers want more cores than there are; frozen BatchNorm, so results agree to rounding."""
    options = {
        "search.trials": 4,
        "model.norm": "frozen",
        "loop.micro_batch": 6,
        "scale.cpus_per_worker": 1,
        "loop.epochs": 2,
    }
    values = {}
    for workers in (1, 2):
        config = make(**options, **{"scale.workers": workers, "run.name": f"with-{workers}"})
        code, output = Command(config).end(600)
        assert code == 0, output
        trials = trials_of(config)
        assert [one["status"] for one in trials] == ["done"] * 4
        assert all(one["workers"] == workers for one in trials)
        assert all(one["worker_seconds"] == pytest.approx(workers * one["seconds"], abs=0.02) for one in trials)
        runs = search_of(config).trials()
        assert {line["world_size"] for run in runs for line in run.read_metrics()} == {workers}
        values[workers] = [run.read_metrics()[-1]["val/loss"] for run in runs]
    assert values[2] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_trials_of_two_workers_stop_early_and_on_request(make: Callable[..., Path]) -> None:
    config = make(
        **{
            "search.trials": 4,
            "search.scheduler": "asha",
            "search.searcher": "grid",
            "search.space": {"optim.lr": {"grid": [3e-3, 1e-2, 1e-7, 2e-7]}},
            "search.reduction": 2,
            "loop.epochs": 6,
            "loop.best_metric": "val/loss",
            "scale.workers": 2,
            "scale.cpus_per_worker": 1,
        }
    )
    command = Command(config)
    wait_until(lambda: any(one["epoch"] >= 1 for one in trials_of(config)), command)
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.end()
    assert code == 75, output
    code, output = Command(config).end(600)
    assert code == 0, output
    statuses = [one["status"] for one in trials_of(config)]
    assert statuses[0] == "done"
    assert "stopped" in statuses[2:]
