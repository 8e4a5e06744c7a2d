"""Searches over the nodes of a Slurm cluster: stopped and requeued, and with a node less."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Job, Lose, Slurm
from tests.slurm.training import make_config, train
from trainer.checkpoint import listed
from trainer.rundir import Json, SearchDir, read_json

pytestmark = pytest.mark.slow

TRIALS = 6
OPTIONS: dict[str, object] = {
    "search__searcher": "random",
    "search__scheduler": "none",
    "search__trials": TRIALS,
    "search__final_seeds": 0,
    "search__space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    "scale__workers": 1,
    "scale__cpus_per_worker": 1,
    "loop__epochs": 8,
    "augment__input_size": 32,
}


@pytest.fixture
def given(stores: tuple[Path, Path], tmp_path: Path) -> tuple[Path, SearchDir]:
    config, run = make_config(stores, tmp_path, "searched", **OPTIONS)
    return config, SearchDir(run.path)


def records(search: SearchDir) -> list[Json]:
    return [read_json(run.trial_file) for run in search.trials()]


def running_on(search: SearchDir, node: str) -> list[str]:
    """The trials that train there and have a checkpoint."""
    return [
        one["run"]
        for one, run in zip(records(search), search.trials(), strict=True)
        if one["status"] == "running" and one["host"] == node and one["epoch"] and listed(run)
    ]


def on_both_nodes(search: SearchDir, job: Job) -> bool:
    return len(job.nodes) == 2 and all(running_on(search, node) for node in job.nodes)


def test_stopped_and_requeued_it_goes_on_in_every_trial(slurm: Slurm, given: tuple[Path, SearchDir]) -> None:
    config, search = given
    job = train(slurm, config, script="tune.sh")
    job.wait_until(lambda: on_both_nodes(search, job), "trials on both nodes")
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until(lambda: job.fact("Restarts") == "1", "its requeue")
    assert search.read()["state"] == "stopped"
    stopped = records(search)
    assert {one["status"] for one in stopped} <= {"waiting", "done"}
    begun = [run for run in search.trials() if run.attempts()]
    reached = {run.name: listed(run)[0].step for run in begun}
    assert job.end() == "COMPLETED", job.said
    ended = records(search)
    assert [one["status"] for one in ended] == ["done"] * TRIALS
    for before, after, run in zip(stopped, ended, search.trials(), strict=False):
        if before["status"] == "done":
            assert after == before
        elif run.name in reached:
            assert run.attempts()[2]["resumed_step"] == reached[run.name]
    assert search.read()["choice"]["candidates"] == TRIALS


def test_a_lost_node_takes_no_trial_along(slurm: Slurm, given: tuple[Path, SearchDir], lose: Lose) -> None:
    """Its trials go on elsewhere, from their checkpoints; the others do not notice."""
    config, search = given
    job = train(slurm, config, options=("--no-kill",), script="tune.sh")
    job.wait_until(lambda: on_both_nodes(search, job), "trials on both nodes")
    lost = running_on(search, job.nodes[1])
    lose(job.nodes[1], "kill")
    assert job.end() == "COMPLETED", job.said
    ended = {one["run"]: one for one in records(search)}
    assert {one["status"] for one in ended.values()} == {"done"}
    for run in search.trials():
        attempts = run.attempts()
        if run.name in lost:
            assert ended[run.name]["failures"] > 0
            assert attempts[2]["resumed_step"] > 0
