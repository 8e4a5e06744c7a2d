"""One node: what it finds wrong with itself, and that a storage that hangs holds up nothing."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.node import BEAT_S, Node, NodeError
from cluster.others import Others, Watch
from cluster.rendezvous import Rendezvous
from tests.cluster.test_allocation import task


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """The first of two."""
    meeting = Rendezvous(tmp_path / "meeting")
    meeting.open()
    return Node(task(SLURM_PROCID="0"), meeting, tmp_path, join_s=5.0)


def test_gpus_that_torch_does_not_see_are_named_with_driver_and_build(node: Node) -> None:
    node.allocation = replace(node.allocation, gpus=99)
    with pytest.raises(NodeError, match=r"node n2: 99 granted, torch sees \d+ \(torch .* built for .*, driver .*\)"):
        node.check_gpus()


def test_an_address_that_others_cannot_reach_is_refused(node: Node) -> None:
    with pytest.raises(NodeError, match=r"127\.0\.0\.1 in /etc/hosts, which other nodes cannot"):
        node.address("127.0.0.1")
    with pytest.raises(NodeError, match="no way to fd00::1"):
        node.address("fd00::1")
    node.allocation = replace(node.allocation, nodes=1)
    assert node.address("127.0.0.1") == "127.0.0.1"


def test_a_storage_that_hangs_does_not_hold_up_the_work(node: Node) -> None:
    os.mkfifo(node.meeting.path / ".node-0")  # nobody reads: who writes there waits for ever
    began = time.monotonic()
    with Watch(node, Others(node)) as watch:
        time.sleep(BEAT_S + 1)
        assert watch.news() == []
    assert time.monotonic() - began < 3 * BEAT_S + 1


def test_what_is_said_once_is_said_again_until_it_is_there(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.rendezvous.AGAIN_S", 0.05)
    (node.meeting.path / ".head").mkdir()  # in the way

    def make_way(_: float) -> None:
        (node.meeting.path / ".head").rmdir()

    monkeypatch.setattr("time.sleep", make_way)
    node.meeting.open_cluster("10.0.0.1:6379")
    assert node.meeting.head() == "10.0.0.1:6379"
