"""What workers agree on before they train: real processes over gloo."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from datetime import timedelta

import torch.distributed as dist

from tests.processes import on_ranks
from trainer.errors import RunError
from trainer.ranks import Ranks
from trainer.worker import on_all


def _hurried(ranks: Ranks) -> Ranks:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    assert isinstance(group, dist.ProcessGroup)
    return replace(ranks, group=group)


def _slow_on_one(ranks: Ranks) -> int:
    def act() -> int:
        time.sleep(3 * ranks.rank)
        return ranks.rank

    return on_all(_hurried(ranks), act)


def _fails_on_one(ranks: Ranks) -> str:
    def act() -> None:
        if ranks.rank == 1:
            raise RunError("no such store")

    try:
        on_all(ranks, act)
    except RunError as error:
        return str(error)
    return ""


def test_a_worker_that_takes_longer_to_open_its_data_is_waited_for() -> None:
    assert on_ranks(2, _slow_on_one) == [0, 1]


def test_what_one_worker_cannot_open_all_say() -> None:
    assert on_ranks(3, _fails_on_one) == [f"{socket.gethostname()}: no such store"] * 3
