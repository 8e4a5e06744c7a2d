"""Searches on a running Ray cluster, which is asked itself what they hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.head import Head, running_head
from tests.trainer.search.searches import Command, search_of, trials_of, wait_until
from trainer.rundir import read_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]

CPUS = 4
TRIAL = "with_parameters.<locals>._Inner"
OURS = (TRIAL, "Board", "TrainController", "RayTrainWorker")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(CPUS) as running:
        yield running


def on(head: Head, config: Path, **variables: str) -> Command:
    return Command(config, RAY_ADDRESS=head.ray_address, **head.environment, **variables)


def alive(head: Head, *kinds: str) -> list[Any]:
    """The actors of some kinds that live. Others are Ray's own, and stay as long as the cluster."""
    return [one for one in head.state("actors") if one["state"] == "ALIVE" and one["class_name"] in kinds]


def cpus_in_use(head: Head) -> float:
    used, _ = head.state("usage").get("CPU", (0.0, CPUS))
    return float(used)


def wait_until_free(head: Head) -> None:
    deadline = time.monotonic() + 60
    while cpus_in_use(head) or alive(head, *OURS):
        assert time.monotonic() < deadline, (cpus_in_use(head), alive(head, *OURS))
        time.sleep(0.5)


def test_what_a_stopped_trial_held_is_free_for_the_next(head: Head, make: Callable[..., Path]) -> None:
    """Ten trials in four places, of which six are stopped early: none could begin where these were not given back."""
    bad = [1e-7, 2e-7, 3e-7, 4e-7, 5e-7, 6e-7]
    config = make(
        **{
            "search.searcher": "grid",
            "search.scheduler": "asha",
            "search.space": {"optim.lr": {"grid": [3e-3, 2e-3, 1e-3, 1e-2, *bad]}},
            "search.reduction": 2,
            "loop.epochs": 4,
            "loop.best_metric": "val/loss",
            "scale.cpus_per_worker": 1,
        }
    )
    most_trials, most_cpus = 0, 0.0
    command = on(head, config)
    while command.process.poll() is None:
        most_trials = max(most_trials, len(alive(head, TRIAL)))
        most_cpus = max(most_cpus, cpus_in_use(head))
        time.sleep(0.5)
    code, output = command.end()
    assert code == 0, output
    assert (most_trials, most_cpus) == (CPUS, CPUS)
    by_rate = {one["parameters"]["optim.lr"]: one for one in trials_of(config)}
    stopped = [one for one in by_rate.values() if one["status"] == "stopped"]
    assert len(stopped) > CPUS
    assert {one["status"] for one in by_rate.values()} == {"done", "stopped"}
    assert sum(one["epoch"] for one in by_rate.values()) < 4 * len(by_rate)
    wait_until_free(head)


def test_trials_of_four_workers_take_turns(head: Head, make: Callable[..., Path]) -> None:
    config = make(**{"search.trials": 2, "scale.workers": 4, "scale.cpus_per_worker": 1, "loop.epochs": 1})
    code, output = on(head, config).end(600)
    assert code == 0, output
    trials = trials_of(config)
    assert [(one["status"], one["workers"]) for one in trials] == [("done", 4)] * 2
    runs = search_of(config).trials()
    assert {line["world_size"] for run in runs for line in run.read_metrics()} == {4}
    wait_until_free(head)


@contextmanager
def held(head: Head, cpus: int) -> Iterator[None]:
    """So many cores of the cluster in somebody else's hands."""
    hold = (
        "import ray, time; ray.init(log_to_driver=False); "
        f"ray.get(ray.util.placement_group([{{'CPU': {cpus}}}]).ready()); print('held', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.ray_address}
    with subprocess.Popen([sys.executable, "-c", hold], env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert "held" in holder.stdout.readline()
        yield
        holder.kill()


def test_a_trial_waits_for_its_workers_room_and_hears_a_stop_meanwhile(head: Head, make: Callable[..., Path]) -> None:
    """More than the four times that a run would wait for; it fails not once."""
    options = {"search.trials": 1, "scale.workers": 4, "scale.cpus_per_worker": 1, "search.retries": 0}
    config = make(**options, **{"loop.epochs": 1})
    trial = search_of(config).trial(1).trial_file
    with held(head, 3):
        waiting = on(head, config, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="1")
        wait_until(lambda: trial.exists() and read_json(trial)["status"] == "running", waiting)
        time.sleep(40)
        assert read_json(trial)["status"] == "running"
        waiting.process.send_signal(signal.SIGTERM)
        code, output = waiting.end()
        assert code == 75, output
    code, output = on(head, config).end(600)
    assert code == 0, output
    (one,) = trials_of(config)
    assert (one["status"], one["failures"]) == ("done", 0)
