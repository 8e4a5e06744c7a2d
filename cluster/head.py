"""Ray's head, watched by a program that works on it: where it is gone, Ray waits a minute, then kills the program."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

LOOK_EVERY_S = 2.0
ANSWER_S = 1.0
LOST_AFTER_S = 30.0
"""A link may be down for some seconds, and some clusters start their head again."""


class HeadLostError(ConnectionError):
    """Ray's head has not answered for so long that nothing is to be hoped for."""


class HeadWatch:
    """Watches the head at `address` (host:port)."""

    def __init__(self, address: str, lost_after_s: float = LOST_AFTER_S):
        host, port = address.rsplit(":", 1)
        self._place, self._limit_s = (host.strip("[]"), int(port)), lost_after_s
        self._looked = time.monotonic()
        self._silent_since: float | None = None

    def check(self) -> None:
        """For who asks often: looks every few seconds.

        Raises:
            HeadLostError: where it has not answered for too long.
        """
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        if self._answers():
            self._silent_since = None
            return
        self._silent_since = self._silent_since or self._looked  # not before: nobody looks while this is suspended
        if (silent := time.monotonic() - self._silent_since) > self._limit_s:
            raise HeadLostError(
                f"Ray's head, {self._place[0]}:{self._place[1]}, is gone (no answer for {silent:.0f} s); the same "
                "command goes on from the newest checkpoint"
            )

    def _answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection(self._place, ANSWER_S).close()
            return True
        return False
