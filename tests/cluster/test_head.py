"""A head that goes away is lost; one that comes back in time is not."""

from __future__ import annotations

import socket

import pytest

from cluster import head
from cluster.head import HeadLostError, HeadWatch


def listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_what_does_not_answer_for_too_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(head.time, "monotonic", lambda: clock[0])
    server = listening()
    port = server.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", lost_after_s=10)

    def check(at: float) -> None:
        clock[0] = at
        watch.check()

    check(5)
    server.close()
    check(14)
    with listening(port):
        check(20)
    check(60)  # as after a suspension, in which nobody looked
    check(69)
    with pytest.raises(HeadLostError, match="the same command goes on"):
        check(72)
