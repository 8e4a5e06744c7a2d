"""What a cluster does to a training, by real losses: nodes, links, daemons, preemption, time limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.slurm.conftest import Slurm
from tests.slurm.training import OPTIONS, STEPS, has_step, train, weights, weights_of_one_machine
from trainer.checkpoint import listed
from trainer.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "lost")


@pytest.fixture
def config(stores: tuple[Path, Path], tmp_path: Path) -> Path:
    options = {**OPTIONS, "run.name": "lost", "loop.epochs": 6}
    return write_config(tmp_path / "lost.yaml", stores, tmp_path / "runs", options)


def test_preempted_it_is_requeued_and_goes_on(slurm: Slurm, config: Path, run: RunDir) -> None:
    job = train(slurm, config, nodes=3)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    urgent = slurm.submit("-p", "urgent", "-N3", "-c4", "--wrap", "sleep 1", output=config.with_name("urgent.out"))
    assert urgent.end() == "COMPLETED"
    job.wait_until(lambda: has_step(run, 2, 3), "the second attempt")
    first, second = (record["resumed_step"] for record in run.attempts().values())
    assert first < second
    job.cancel()
    job.end()


def test_without_one_of_its_nodes_an_elastic_run_goes_on(slurm: Slurm, config: Path, run: RunDir) -> None:
    job = train(slurm, config, "--scale.workers", "1:3", nodes=3, options=("--no-kill",))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    slurm.node("kill", "n3")
    try:
        assert job.end() == "COMPLETED", job.said
        assert job.fact("Restarts") == "0"
        workers = [record["workers"] for record in run.attempts().values()]
        assert workers[0] == 3
        assert workers[-1] == 2
    finally:
        slurm.node("boot", "n3")


def test_without_one_of_its_nodes_a_job_is_requeued_on_others(slurm: Slurm, config: Path, run: RunDir) -> None:
    job = train(slurm, config, nodes=2)
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    slurm.node("kill", "n2")
    try:
        job.wait_until(lambda: has_step(run, 2, 3), "the second attempt, on other nodes")
        assert run.attempts()[2]["resumed_step"] >= 2
    finally:
        job.cancel()
        job.end()
        slurm.node("boot", "n2")


def test_of_two_attempts_alive_at_once_one_writes(slurm: Slurm, config: Path, run: RunDir) -> None:
    """slurmd dies, its job's processes live on: Slurm requeues the job elsewhere, and the run has two trainers."""
    job = train(slurm, config, "--scale.workers", "1", nodes=1, options=("-w", "n1"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    slurm.node("hang", "n1")
    slurm("scontrol", "update", f"JobId={job.number}", "ReqNodeList=")
    job.wait_until(lambda: has_step(run, 2, 3), "the second attempt")
    resumed = run.attempts()[2]["resumed_step"]
    job.wait_until(lambda: "attempt 2 has taken run lost over from attempt 1" in job.said, "the first one's end")
    assert all(c.attempt == 2 for c in listed(run) if c.step > resumed)
    slurm.node("boot", "n1")
    assert job.end() == "COMPLETED"


def test_a_link_cut_for_ever_is_noticed(slurm: Slurm, config: Path, run: RunDir) -> None:
    job = train(slurm, config, "--scale.workers", "1:2", nodes=2, options=("--no-kill", "-w", "n1,n2"))
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    slurm.node("link", "n2", "down")
    try:
        job.wait_until(lambda: has_step(run, 2, 3), "an attempt without the node")
        assert run.attempts()[max(run.attempts())]["workers"] == 1
    finally:
        slurm.node("link", "n2", "up")
        job.cancel()
        job.end()


def test_the_time_limit_is_no_end(slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Slurm's own signal, some time before the limit of a minute."""
    options = {**OPTIONS, "run.name": "limited", "loop.epochs": 3}
    config = write_config(tmp_path / "limited.yaml", stores, tmp_path / "runs", options)
    run = RunDir(tmp_path / "runs" / "limited")
    job = train(slurm, config, nodes=2, options=("--time=1", "--signal=B:USR1@20"))
    assert job.end() == "COMPLETED", job.said
    alone = write_config(tmp_path / "alone.yaml", stores, tmp_path / "runs", {**options, "run.name": "alone"})
    assert weights(run) == weights_of_one_machine(alone)
    assert listed(run)[0].step == STEPS
