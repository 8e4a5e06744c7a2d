"""What workers tell, over a real Ray."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cluster.ray_cluster import connect
from trainer.board import with_board


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_what_is_told_while_earlier_messages_are_shown_is_not_lost() -> None:
    """The last epoch, as it may be, told and the work ended before the one before it has been shown."""
    is_shown, ended = threading.Event(), threading.Event()
    seen: list[str] = []

    def act(board: Any) -> str:
        import ray

        ray.get(board.put.remote({"phase": "first"}))
        is_shown.wait(60)
        ray.get(board.put.remote({"phase": "last"}))
        ended.set()
        return "done"

    def show(message: dict[str, Any]) -> None:
        seen.append(message["phase"])
        is_shown.set()
        ended.wait(60)
        for thread in threading.enumerate():
            if thread.name == "ray":
                thread.join(60)

    with connect(cpus=1, gpus=0):
        assert with_board(act, show, lambda: False) == "done"
    assert seen == ["first", "last"]
