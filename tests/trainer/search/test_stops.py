"""Searches that are stopped, killed, broken, or asked for more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs import weights
from tests.trainer.search.searches import (
    Command,
    search_of,
    trials_of,
    wait_until,
)
from trainer.checkpoint import listed
from trainer.rundir import Json, RunDir, read_json, write_json


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("share", [pytest.param(False, id="alone"), pytest.param("auto", id="together")])
def test_stopped_it_goes_on_and_may_be_asked_for_more(make: Callable[..., Path], share: object) -> None:
    """TERM to the whole process group while trials train; then to the end; then two trials more."""
    config = make(**{"search.trials": 3, "search.share_trunk": share, "loop.epochs": 6, "loop.checkpoint_every": 2})
    command = Command(config)
    wait_until(lambda: any(one["epoch"] >= 2 for one in trials_of(config)), command)
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.end()
    assert code == 75, output
    assert "the same command goes on" in output
    stopped = trials_of(config)
    assert search_of(config).read()["state"] == "stopped"
    assert {one["status"] for one in stopped} <= {"waiting", "done"}
    begun = [run for run in search_of(config).trials() if (run.checkpoints_dir).exists()]
    assert begun
    assert all(listed(run) for run in begun), "every running trial has a checkpoint"
    reached = {run.name: listed(run)[0].step for run in begun}

    code, output = Command(config).end()
    assert code == 0, output
    for run in begun:
        if len(run.attempts()) > 1:
            assert run.attempts()[2]["resumed_step"] == reached[run.name]
    ended = trials_of(config)
    assert [one["status"] for one in ended] == ["done"] * 3

    code, output = Command(config, "--search.trials", "5").end()
    assert code == 0, output
    more = trials_of(config)
    assert more[:3] == ended, "no trial that had ended was touched"
    assert len(more) == 5
    assert len({one["parameters"]["optim.lr"] for one in more}) == 5
    assert search_of(config).read()["choice"]["of"] == 5


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGUSR1, 5)])
def test_stopped_while_ray_starts_it_is_stopped(make: Callable[..., Path], number: int, after_s: float) -> None:
    """Ray has a handler of its own for TERM then; and nothing has begun of which all could have ended."""
    config = make()
    command = Command(config)
    assert command.process.stdout
    assert any("starting Ray" in line for line in command.process.stdout)
    time.sleep(after_s)
    os.killpg(command.process.pid, number)
    code, output = command.end()
    assert code == 75, output
    assert "the same command goes on" in output
    assert search_of(config).read()["state"] == "stopped"


class Trained:
    """What a search's trials were, whoever stopped or killed it on the way."""

    def __init__(self, config: Path):
        self.records = trials_of(config)
        self.parameters = [one["parameters"] for one in self.records]
        self.values = [one["value"] for one in self.records]
        self.choice = search_of(config).read()["choice"]
        self.weights = {run.name: weights(run) for run in search_of(config).trials()}


def kill_at_random_moments(config: Path, times: int) -> dict[str, Json]:
    """SIGKILL of the driver, again and again; the records of the trials that had ended, which no start touches."""
    seed = random.randrange(10**6)
    print(f"moments are drawn from {seed}")
    moments = random.Random(seed)
    ended: dict[str, Json] = {}
    for _ in range(times):
        command = Command(config)
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(timeout=moments.uniform(20, 60))
        command.kill()
        for one in trials_of(config):
            assert ended.get(one["run"], one) == one, "a trial that had ended was touched"
            if one["ended"]:
                ended[one["run"]] = one
    return ended


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("share", [False, "auto"], ids=["alone", "together"])
def test_killed_at_random_moments_no_ended_trial_is_run_again_and_the_same_one_wins(
    make: Callable[..., Path], share: object
) -> None:
    """Against a search of the same seed that nobody disturbed, to the bit."""
    options = {"search.trials": 4, "loop.epochs": 3, "loop.checkpoint_every": 2, "scale.cpus_per_worker": 1}
    options["search.share_trunk"] = share
    quiet = make(**options, **{"run.name": "undisturbed"})
    code, output = Command(quiet).end()
    assert code == 0, output
    undisturbed = Trained(quiet)

    config = make(**options, **{"run.name": "disturbed"})
    ended = kill_at_random_moments(config, times=5)
    code, output = Command(config).end()
    assert code == 0, output
    disturbed = Trained(config)
    for name, one in ended.items():
        assert disturbed.records[int(name) - 1] == one
    assert disturbed.parameters == undisturbed.parameters
    assert disturbed.values == undisturbed.values
    assert disturbed.weights == undisturbed.weights
    assert disturbed.choice == undisturbed.choice


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(("searcher", "scheduler"), [("optuna", "asha"), ("optuna", "median"), ("random", "median")])
def test_killed_at_random_moments_a_search_that_learns_goes_on_learning(
    make: Callable[..., Path], searcher: str, scheduler: str
) -> None:
    """What is tried and stopped depends on who was quicker; what has ended stays, and nothing is tried twice."""
    options = {"search.trials": 8, "search.searcher": searcher, "search.scheduler": scheduler, "search.reduction": 2}
    config = make(**options, **{"search.grace_epochs": 1, "loop.epochs": 4, "scale.cpus_per_worker": 1})
    ended = kill_at_random_moments(config, times=3)
    code, output = Command(config).end()
    assert code == 0, output
    records = {one["run"]: one for one in trials_of(config)}
    assert len(records) == len({one["parameters"]["optim.lr"] for one in records.values()}) == 8
    assert {one["status"] for one in records.values()} <= {"done", "stopped"}
    assert not any(one["failures"] for one in records.values())
    assert {name: records[name] for name in ended} == ended
    for name, one in records.items():
        told = [line["val/balanced_accuracy"] for line in RunDir(search_of(config).trials_dir / name).read_metrics()]
        assert (one["epoch"], one["value"]) == (len(told), max(told))
    done = {name: one["value"] for name, one in records.items() if one["status"] == "done"}
    choice = search_of(config).read()["choice"]
    assert (choice["of"], choice["candidates"]) == (8, len(done))
    assert choice["value"] == max(done.values())


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("share", [False, "auto"], ids=["alone", "together"])
def test_a_trial_that_is_killed_goes_on_and_one_that_always_breaks_fails(
    make: Callable[..., Path], share: object
) -> None:
    """SIGKILL of a trial's process: started again from its checkpoint. A trial that cannot be read breaks for good."""
    options = {"search.trials": 2, "loop.epochs": 6, "search.retries": 1, "scale.cpus_per_worker": 2}
    config = make(**options, **{"search.share_trunk": share})
    search = search_of(config)
    broken = search.trial(2)
    broken.checkpoints_dir.parent.mkdir(parents=True)
    (broken.path / "attempts").write_text("not a folder")
    command = Command(config)
    first = search.trial(1)
    wait_until(lambda: first.trial_file.exists() and read_json(first.trial_file)["epoch"] >= 2, command)
    os.kill(first.attempts()[1]["pid"], signal.SIGKILL)
    code, output = command.end()
    assert code == 0, output
    one, two = trials_of(config)
    assert (one["status"], one["failures"], one["epoch"]) == ("done", 1, 6)
    assert "was started again" in one["notes"][0]
    assert first.attempts()[2]["resumed_step"] > 0
    assert (two["status"], two["failures"]) == ("failed", 1)
    assert "attempts" in two["message"]
    assert "trial 0002 failed" in output

    (broken.path / "attempts").unlink()
    code, output = Command(config, "--retry-failed").end()
    assert code == 0, output
    assert [record["status"] for record in trials_of(config)] == ["done", "done"]
    assert trials_of(config)[0] == one


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_a_driver_whose_search_was_taken_over_ends_and_takes_nothing_back(make: Callable[..., Path]) -> None:
    """The other one, which took the lock and claimed the trial's next attempt, is played by hand."""
    config = make(**{"search.trials": 1, "loop.epochs": 50})
    search, run = search_of(config), search_of(config).trial(1)
    command = Command(config)
    wait_until(lambda: run.trial_file.exists() and read_json(run.trial_file)["epoch"] >= 1, command)
    write_json(search.lock_file, {**read_json(search.lock_file), "host": "elsewhere", "pid": 17})
    before = [file.read_bytes() for file in (run.trial_file, search.search_file)]
    assert run.claim_attempt(2, {"resumed_step": listed(run)[0].step})
    code, output = command.end(60)
    assert code == 1, output
    assert "taken over by process 17 on elsewhere" in output
    assert [file.read_bytes() for file in (run.trial_file, search.search_file)] == before
    assert run.newest_attempt() == 2
    assert search.lock_file.exists()
