"""Nodes that do not fit together: what cannot be seen by all, and versions that differ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Job, Slurm
from tests.slurm.training import make_config, train

pytestmark = pytest.mark.slow

OWN = "/tmp/ray"  # of which each node has another
OTHER_RAY = """
import ray, ray._version
ray.__version__ = ray._version.version = "2.0.0"
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A program that is Python, but on n2 with another version of Ray."""
    odd = tmp_path / "odd"
    (odd / "ray-2.0.0.dist-info").mkdir(parents=True)
    (odd / "ray-2.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.0.0\n")
    (odd / "sitecustomize.py").write_text(OTHER_RAY)
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/bash\n[[ $SLURMD_NODENAME == n2 ]] && export PYTHONPATH={odd}\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return program


def over_two_nodes(slurm: Slurm, output: Path, *command: str) -> Job:
    """A job of a single `srun`, one task on each of the first two nodes."""
    wrapped = " ".join(("srun --ntasks-per-node=1 -c2", *command))
    return slurm.submit("-N2", "-w", "n1,n2", "-c", "2", "--wrap", wrapped, output=output)


def test_a_storage_that_one_node_does_not_see_is_named(slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = make_config(stores, tmp_path, "unseen")
    job = train(slurm, config, "--run.storage", f"{OWN}/runs", options=("-w", "n1,n2"))
    assert job.end() == "FAILED"
    assert f"n2: run.storage: {OWN}/runs/unseen is not there" in job.said


def test_a_meeting_place_that_is_not_shared_is_named(slurm: Slurm, tmp_path: Path) -> None:
    run = ("-m", "cluster", "run", "--shared", f"{OWN}/meetings", "--join-s", "20", "--", "true")
    job = over_two_nodes(slurm, tmp_path / "apart.out", sys.executable, *run)
    assert job.end() == "FAILED"
    assert "node n1: the other nodes have not joined in 30 s" in job.said
    assert "node number 1: no word from it" in job.said
    assert "node n2: the head has not said where it is in 20 s" in job.said


def test_a_node_with_another_version_of_ray_cannot_join_and_says_why(
    slurm: Slurm, elsewhere: Path, tmp_path: Path
) -> None:
    run = ("-m", "cluster", "run", "--shared", str(slurm.meetings), "--", "true")
    job = over_two_nodes(slurm, tmp_path / "versions.out", str(elsewhere), *run)
    assert job.end() == "FAILED"
    assert "error: node n2: Ray has ended" in job.said
    assert "2.0.0" in job.said


def test_the_doctor_sees_the_other_version(slurm: Slurm, elsewhere: Path, tmp_path: Path) -> None:
    doctor = ("-m", "cluster", "doctor", "--shared", str(slurm.meetings), "--storage", str(tmp_path))
    job = over_two_nodes(slurm, tmp_path / "doctor.out", str(elsewhere), *doctor)
    assert job.end() == "FAILED"
    assert "ray 2.0.0" in job.said
