"""Training by `sbatch slurm/train.sh` on a real Slurm: over nodes, stopped, requeued, cancelled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.private import private_directory
from cluster.rendezvous import Rendezvous
from tests.conftest import write_config
from tests.runs import trained_alone, weights
from tests.slurm.cluster import Slurm
from tests.slurm.training import OPTIONS, STEPS, has_step, train
from trainer.checkpoint import listed
from trainer.rundir import RunDir


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A path with a space in it."""
    return tmp_path / "shared runs"


@pytest.mark.slow
def test_stopped_and_requeued_it_ends_as_if_never_stopped(
    slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path, storage: Path
) -> None:
    """Two nodes; the signal that comes before a time limit; the same job goes on; against one machine without Ray."""
    config = write_config(tmp_path / "stopped.yaml", stores, storage, {**OPTIONS, "run.name": "stopped"})
    run = RunDir(storage / "stopped")
    job = train(slurm, config, "--fresh")
    job.wait_until(lambda: has_step(run, 1, 2), "step 2")
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until(lambda: job.fact("Restarts") == "1", "its requeue")
    stopped_at = listed(run)[0].step
    assert stopped_at < STEPS
    assert job.end() == "COMPLETED", job.said
    assert [record["resumed_step"] for record in run.attempts().values()] == [0, stopped_at]
    assert f"stopped at step {stopped_at}, with a good checkpoint" in job.said
    assert not job.left()

    alone = write_config(tmp_path / "alone.yaml", stores, storage, {**OPTIONS, "run.name": "alone"})
    assert weights(run, STEPS) == weights(trained_alone(alone), STEPS)


def test_cancelled_it_leaves_nothing(slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path, storage: Path) -> None:
    config = write_config(tmp_path / "cancelled.yaml", stores, storage, {**OPTIONS, "loop.epochs": 500})
    run = RunDir(storage / "small")
    job = train(slurm, config)
    job.wait_until(lambda: has_step(run, 1, 1), "step 1")
    job.cancel()
    job.wait_until(lambda: not job.left(), "an end of all processes and directories")
    assert (job.end(), job.fact("Restarts")) == ("CANCELLED", "0")


@pytest.mark.slow
def test_cancelled_with_its_cgroup_it_leaves_what_the_next_start_removes(
    slurm_with_cgroups: Slurm, stores: tuple[Path, Path], tmp_path: Path, storage: Path
) -> None:
    """No process at all outlives that end: none is there to clear up. The next start of this user does."""
    config = write_config(tmp_path / "cancelled.yaml", stores, storage, {**OPTIONS, "loop.epochs": 500})
    job = train(slurm_with_cgroups, config, "--scale.workers", "1", nodes=1)
    job.wait_until(lambda: has_step(RunDir(storage / "small"), 1, 1), "step 1")
    job.cancel()
    job.wait_until(lambda: all(Path(left).exists() for left in job.left()), "an end of all processes")
    for left in job.left():
        os.utime(left, (0, 0))
    with private_directory():
        Rendezvous(slurm_with_cgroups.meetings / "next").open()
    assert not job.left()


@pytest.mark.slow
def test_a_run_that_another_job_trains_is_refused(
    slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path, storage: Path
) -> None:
    """Two jobs on one node at once: the same run is refused, another is trained."""
    config = write_config(tmp_path / "first.yaml", stores, storage, {**OPTIONS, "loop.epochs": 500, "scale.workers": 1})
    run = RunDir(storage / "small")
    first = train(slurm, config, nodes=1, options=("-w", "n1"))
    first.wait_until(lambda: has_step(run, 1, 1), "step 1")
    same = train(slurm, config.rename(tmp_path / "same.yaml"), nodes=1, options=("-w", "n1"))
    other = write_config(tmp_path / "other.yaml", stores, storage, {**OPTIONS, "run.name": "other", "scale.workers": 1})
    beside = train(slurm, other, nodes=1, options=("-w", "n1"))
    assert same.end() == "FAILED"
    assert f"is being trained by process {json.loads(run.lock_file.read_text())['pid']} on n1" in same.said
    assert beside.end() == "COMPLETED", beside.said
    first.cancel()
    first.end()
