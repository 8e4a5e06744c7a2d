"""A run on a Ray cluster that grows: it takes the new node in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.allocation import local
from cluster.private import private_directory
from cluster.processes import end, start
from cluster.ray_cluster import authentication, node_argv, ray_environment
from tests.cluster.head import LOCAL, Head, running_head
from tests.cluster.test_submit import OPTIONS, TRAIN, wait_until
from tests.conftest import write_config
from trainer.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


def test_a_new_node_is_taken_in(head: Head, stores: tuple[Path, Path], tmp_path: Path) -> None:
    elastic = {**OPTIONS, "scale.workers": "1:2", "scale.cpus_per_worker": 2, "loop.epochs": 500}
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", elastic)
    run = RunDir(tmp_path / "runs" / "small")
    head.submit("--", *TRAIN, str(config))
    wait_until(lambda: 1 in run.attempts())
    assert run.attempts()[1]["workers"] == 1

    token = authentication(Path(head.environment["RAY_AUTH_TOKEN_PATH"]))
    variables = {**os.environ, **ray_environment(), **{key: value for key, value in token.items() if value}}
    with private_directory() as directory:
        argv = node_argv(replace(local("new", 1, 2), cpus=2), head.ray_address, LOCAL, directory / "ray")
        node = start(argv, variables, directory / "ray.log", shielded=True)
        try:
            wait_until(lambda: 2 in run.attempts())
            assert run.attempts()[2]["workers"] == 2
        finally:
            end(node, grace_s=10)
