"""What becomes of a training when it loses a node, a link, or a daemon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.ledger import Fault
from tests.slurm.cluster import Job, Lose, Slurm
from tests.slurm.training import has_step, make_config, train
from trainer.checkpoint import listed
from trainer.rundir import RunDir

pytestmark = pytest.mark.slow

ELASTIC = ("--no-kill", "-c", "1")  # a node has room for one worker, and no more


@pytest.fixture
def given(stores: tuple[Path, Path], tmp_path: Path) -> tuple[Path, RunDir]:
    """A training of some minutes, and its run."""
    return make_config(stores, tmp_path, "lost", loop__epochs=40)


def test_an_elastic_run_goes_on_without_a_node(slurm: Slurm, given: tuple[Path, RunDir], lose: Lose) -> None:
    config, run = given
    flags = ("--scale.workers", "1:3", "--loop.epochs", "3")
    job = train(slurm, config, *flags, nodes=3, options=ELASTIC)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n3", "kill")
    assert (job.end(), job.fact("Restarts")) == ("COMPLETED", "0"), job.said
    workers = [record["workers"] for record in run.attempts().values()]
    assert (workers[0], workers[-1]) == (3, 2)


def wait_for_requeue_anywhere(slurm: Slurm, job: Job) -> None:
    """Waits until a job is queued again, and lets it have other nodes than those that it was given to begin on."""
    job.wait_until(lambda: job.fact("JobState") == "PENDING", "its requeue")
    slurm("scontrol", "update", f"JobId={job.number}", "ReqNodeList=")


def test_without_one_of_its_nodes_a_job_is_requeued_on_others(
    slurm: Slurm, given: tuple[Path, RunDir], lose: Lose
) -> None:
    config, run = given
    job = train(slurm, config, nodes=2)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    before = listed(run)[0].step
    lose(job.nodes[1], "kill")
    job.wait_until(lambda: job.fact("Restarts") == "1", "its requeue")
    last = max(run.attempts())  # Ray may have gone on without the node until then
    job.wait_until(lambda: has_step(run, last + 1, before + 1), "an attempt of the second start, on other nodes")
    assert run.attempts()[last + 1]["resumed_step"] >= before


def test_without_a_spare_node_a_job_waits_for_one(slurm: Slurm, given: tuple[Path, RunDir], lose: Lose) -> None:
    config, run = given
    job = train(slurm, config, nodes=3)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n2", "kill")
    job.wait_until(lambda: job.fact("JobState") == "PENDING", "its place in the queue")
    before, last = listed(run)[0].step, max(run.attempts())  # Ray may have gone on without the node until then
    slurm.node("boot", "n2")
    job.wait_until(lambda: has_step(run, last + 1, before + 1), "an attempt of the second start")
    assert run.attempts()[last + 1]["resumed_step"] == before


def first_is_over(job: Job) -> bool:
    """Whether no task of a requeued job's first start is left; on a node that is cut off, srun waits for Slurm."""
    tasks = [variables for variables in job.processes().values() if "SLURM_STEP_ID" in variables]
    return all("SLURM_RESTART_COUNT" in variables for variables in tasks)


def newest_alone_writes(run: RunDir) -> bool:
    """Whether all that has been committed since the newest attempt began is of that attempt."""
    newest = max(run.attempts())
    return all(c.attempt == newest for c in listed(run) if c.step > run.attempts()[newest]["resumed_step"])


@pytest.mark.fault(3, "slurmd lost, its job alive and requeued elsewhere: two attempts at once", "one writer")
def test_of_two_attempts_alive_at_once_one_writes(
    fault: Fault, slurm: Slurm, given: tuple[Path, RunDir], lose: Lose
) -> None:
    """slurmd dies, its job's processes live on: Slurm requeues the job elsewhere, and the run has two trainers."""
    config, run = given
    job = train(slurm, config, "--scale.workers", "1", nodes=1, options=("-w", "n1"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n1", "hang")
    wait_for_requeue_anywhere(slurm, job)
    job.wait_until(lambda: has_step(run, 2, 3), "the second attempt")
    job.wait_until(lambda: first_is_over(job), "the first one's end")
    assert newest_alone_writes(run)
    fault.times, fault.figure = 1, "of the first one nothing counts after the second has begun; it ends"


@pytest.mark.fault(3, "a worker node's link cut for ever", "noticed within the configured limit; training again")
def test_a_link_cut_for_ever_is_noticed(fault: Fault, slurm: Slurm, given: tuple[Path, RunDir], lose: Lose) -> None:
    config, run = given
    job = train(slurm, config, "--scale.workers", "1:2", nodes=2, options=(*ELASTIC, "-w", "n1,n2"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n2", "down")
    cut = time.monotonic()
    job.wait_until(lambda: has_step(run, 2, 3), "an attempt without the node")
    assert run.attempts()[max(run.attempts())]["workers"] == 1
    fault.times, fault.figure = 1, f"training again after {time.monotonic() - cut:.0f} s, with one worker"


@pytest.mark.fault(3, "a worker node's link cut for 4 s", "the flap survives: no new attempt, no requeue")
def test_a_link_that_is_down_for_four_seconds_costs_nothing(
    fault: Fault, slurm: Slurm, given: tuple[Path, RunDir], lose: Lose
) -> None:
    config, run = given
    job = train(slurm, config, nodes=2, options=("-w", "n1,n2"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n2", "down")
    time.sleep(4)
    slurm.node("link", "n2", "up")
    before = listed(run)[0].step
    job.wait_until(lambda: has_step(run, 1, before + 10), "ten more steps")
    assert list(run.attempts()) == [1]
    assert job.fact("Restarts") == "0"
    fault.times, fault.figure = 1, "ten more steps, still the first attempt"


@pytest.mark.fault(3, "the head node's link cut for ever", "requeued elsewhere, goes on; one writer")
def test_a_head_that_is_cut_off_writes_no_more(
    fault: Fault, slurm: Slurm, given: tuple[Path, RunDir], lose: Lose
) -> None:
    """The first node's link goes down for ever: the job is requeued on others, the first attempt is over."""
    config, run = given
    job = train(slurm, config, nodes=2, options=("-w", "n1,n2"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    lose("n1", "down")
    wait_for_requeue_anywhere(slurm, job)
    job.wait_until(lambda: first_is_over(job), "the first start's end")
    before, last = listed(run)[0].step, max(run.attempts())
    job.wait_until(lambda: has_step(run, last, before + 5), "five more steps, on other nodes")
    assert newest_alone_writes(run)
    fault.times, fault.figure = 1, f"five more steps on other nodes, as attempt {last}"
