"""Ends that are no end: time limits, preemption, requeues. The job goes on from where it was."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Job, Slurm
from tests.slurm.training import STEPS, has_step, make_config, train
from trainer.checkpoint import listed
from trainer.rundir import RunDir

pytestmark = pytest.mark.slow

Stores = tuple[Path, Path]


def resumed_steps(run: RunDir) -> list[int]:
    """From which step each attempt began."""
    return [record["resumed_step"] for record in run.attempts().values()]


def stopped_step(job: Job) -> int:
    """At which step its first attempt says that it has stopped."""
    said = re.search(r"stopped at step (\d+), with a good checkpoint", job.said)
    assert said is not None, job.said
    return int(said[1])


def test_the_time_limit_is_no_end(slurm: Slurm, stores: Stores, tmp_path: Path) -> None:
    """Slurm's own signal, some time before the limit."""
    config, run = make_config(stores, tmp_path, "limited", loop__epochs=500, loop__checkpoint_every=1000)
    job = train(slurm, config, options=("--time=2", "--signal=B:USR1@30"))
    job.wait_until(lambda: job.fact("Restarts") == "1", "its requeue")
    stopped_at = stopped_step(job)
    job.wait_until(lambda: has_step(run, 2, stopped_at + 1), "the second attempt")
    assert resumed_steps(run) == [0, stopped_at]


def test_what_does_not_stop_in_time_is_requeued_all_the_same(slurm: Slurm, tmp_path: Path) -> None:
    """When its time is over, a command that heeds nothing is killed, and the batch script with it."""
    deaf = tmp_path / "python"
    deaf.write_text("#!/bin/bash\ntrap '' USR1 TERM\nsleep 600\n")
    deaf.chmod(0o755)
    options = ("--time=1", "--signal=B:USR1@5", f"--export=ALL,TISSUEGRID_PYTHON={deaf}")
    job = train(slurm, tmp_path / "any.yaml", nodes=1, options=options)
    job.wait_until(lambda: job.fact("Restarts") == "1", "its requeue")
    assert "start 1, on n" in job.said
    assert "requeued" in job.said


def test_preempted_it_loses_no_step(slurm: Slurm, stores: Stores, tmp_path: Path) -> None:
    config, run = make_config(stores, tmp_path, "preempted", loop__checkpoint_every=2, loop__epochs=60)
    job = train(slurm, config, nodes=3)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    urgent = slurm.submit("-p", "urgent", "-N3", "-c4", "--wrap", "sleep 1", output=config.with_name("urgent.out"))
    assert urgent.end() == "COMPLETED"
    stopped_at = stopped_step(job)
    job.wait_until(lambda: has_step(run, 2, stopped_at + 1), "the second attempt")
    assert resumed_steps(run) == [0, stopped_at]


def test_cancelled_at_any_moment_it_stays_cancelled(slurm: Slurm, stores: Stores, tmp_path: Path) -> None:
    """Slurm's TERM lets it stop in order, with the code that otherwise asks for a requeue."""
    config, run = make_config(stores, tmp_path, "cancelled", scale__workers=1, loop__epochs=500)
    early = train(slurm, config, nodes=1)
    early.wait_until(lambda: any(slurm.meetings.glob("*/token")), "its beginning")
    early.cancel()
    late = train(slurm, config, nodes=1)
    late.wait_until(lambda: has_step(run, 1, 1), "step 1")
    late.cancel()
    time.sleep(10)
    for job in (early, late):
        assert (job.fact("JobState"), job.fact("Restarts")) == ("CANCELLED", "0")


@pytest.mark.parametrize("how", ["harsh", "requeue"])
def test_ended_without_grace_it_loses_an_interval_at_most(
    slurm: Slurm, stores: Stores, tmp_path: Path, how: str
) -> None:
    """A preemption that gives no time, and `scontrol requeue`."""
    config, run = make_config(stores, tmp_path, how, loop__checkpoint_every=2, loop__epochs=60)
    job = train(slurm, config, nodes=3, options=("-p", "harsh"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    before = listed(run)[0].step
    if how == "harsh":
        slurm.submit("-p", "urgent", "-N3", "-c4", "--wrap", "sleep 1", output=config.with_name("urgent.out")).end()
    else:
        slurm("scontrol", "requeue", job.number)
    job.wait_until(lambda: has_step(run, 2, before + 1), "the second attempt")
    assert resumed_steps(run)[1] >= before


def test_each_task_of_an_array_trains_a_seed(slurm: Slurm, stores: Stores, tmp_path: Path) -> None:
    config, _ = make_config(stores, tmp_path, "seeds", scale__workers=1)
    flags = ("--run.seed", "%a", "--run.name", "seed-%a")
    array = train(slurm, config, *flags, nodes=1, options=("--array=3-4", "--job-name=seeds"))
    runs = {seed: RunDir(tmp_path / "runs" / f"seed-{seed}") for seed in (3, 4)}
    array.wait_until(lambda: all(has_step(run, 1, 1) for run in runs.values()), "step 1")
    slurm("scancel", "--batch", "--signal=USR1", array.number)
    array.wait_until(lambda: array.facts("Restarts") == ["1", "1"], "the requeue of both")
    assert array.end() == "COMPLETED", array.said
    for seed, run in runs.items():
        assert run.read_identity()["identity"]["run.seed"] == seed
        assert listed(run)[0].step == STEPS


def test_a_limit_that_leaves_no_time_to_begin_is_not_tried_for_ever(
    slurm: Slurm, stores: Stores, tmp_path: Path
) -> None:
    """The signal comes before the nodes have found each other, each time."""
    config, run = make_config(stores, tmp_path, "hasty")
    job = train(slurm, config, nodes=2)
    for restarts in range(3):
        job.wait_until(lambda n=restarts: job.fact("Restarts") == str(n) and any(slurm.meetings.glob("*/token")), "it")  # type: ignore[misc]
        slurm("scancel", "--batch", "--signal=USR1", job.number)
        job.wait_until(lambda: not any(slurm.meetings.glob("*/token")), "its stop")
    assert job.end() == "FAILED"
    assert "stopped again and again before the command began" in job.said
    assert not run.path.exists()
