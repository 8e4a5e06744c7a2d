"""Requests to stop: INT, TERM and USR1 to the program."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AT_ONCE_AFTER_S = 5.0


class StopSignals:
    """While the context lasts, a signal asks for a stop at the next step.

    An INT more than five seconds after the first request ends the program at once; an earlier one is an impatient
    finger, or a system that signals both the process and its group, and asks for nothing new.

    Light to import: it must be there before anything that takes seconds, so that a batch system's early request to
    stop does not kill the program.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked_at is not None

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > AT_ONCE_AFTER_S:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: what follows is clearing up
            raise KeyboardInterrupt
