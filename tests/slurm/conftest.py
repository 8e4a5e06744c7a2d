"""A Slurm cluster for the tests, or a skip that says what is missing; after each test, nothing is left of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.private import private_directory
from tests.slurm.cluster import CannotError, Lose, Slurm, bring_up, take_down


@contextmanager
def running(*arguments: str) -> Iterator[Slurm]:
    """A cluster without GPUs. Nothing but our own programs cleans up after a job."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as parent:
        folder = Path(parent) / "cluster"
        try:
            yield bring_up(folder, *arguments, "--gpus", "0", "--no-epilog")
        except CannotError as error:
            pytest.skip(str(error))
        finally:
            take_down(folder)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Three nodes of four CPUs."""
    with running("3") as slurm:
        yield slurm


@pytest.fixture
def lose(slurm: Slurm) -> Iterator[Lose]:
    """Takes a node (kill, hang) or its link (down) away, until the test's end."""
    lost = []

    def act(node: str, how: str) -> None:
        lost.append((node, how))
        slurm.node(*(("link", node, "down") if how == "down" else (how, node)))

    yield act
    for node, how in lost:
        slurm.node(*(("link", node, "up") if how == "down" else ("boot", node)))
    for left in Path("/tmp").glob("tg-*-*"):  # a node that lost its power keeps its disk; its next start clears up
        os.utime(left, (0, 0))
    with private_directory():
        pass


@pytest.fixture
def slurm_with_cgroups() -> Iterator[Slurm]:
    """One node that knows a job's processes by their cgroup."""
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        pytest.skip("proctrack/cgroup needs cgroups of version 1 here")
    with running("1", "--proctrack", "cgroup") as slurm:
        yield slurm


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends a test's jobs, and finds nothing of them: no process, no directory, no meeting, on any node."""
    if "slurm" not in request.fixturenames:
        yield
        return
    slurm: Slurm = request.getfixturevalue("slurm")
    slurm.jobs.clear()
    yield
    for job in slurm.jobs:
        if not job.ended:
            job.cancel()
        job.wait_until(lambda job=job: not job.left(), "an end of all that it began")  # type: ignore[misc]
        assert job.ended, "it was cancelled, and came back"
