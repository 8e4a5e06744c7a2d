"""Requests to stop: INT, TERM and USR1 to the program."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AT_ONCE_AFTER_S = 5.0
POLL_S = 0.2


class StopSignals:
    """While the context lasts, a signal asks for a stop at the next step.

    An INT more than five seconds after the first request ends the program at once; an earlier one is an impatient
    finger, or a system that signals both the process and its group, and asks for nothing new.

    A thread waits for the signals, and every thread that is started meanwhile has them blocked: so libraries that bring
    handlers of their own, as Ray does while it starts, are never called. Light to import, and to be entered before
    anything that takes seconds or starts threads; those that are there already can still call the handlers set here.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._at_once = False
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True, name="stop signals")
        self._mask: set[int | signal.Signals] = set()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._handlers = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._listener.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked_at is not None

    def _listen(self) -> None:
        # Python's sigtimedwait answers with a signal that nobody sent when the program was suspended and continued.
        while not self._over.wait(POLL_S):
            for number in signal.sigpending().intersection(STOP_SIGNALS):
                self._ask(signal.sigwait({number}))

    def _ask(self, number: int) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > AT_ONCE_AFTER_S:
            self._at_once = True
            _thread.interrupt_main()  # calls the handler on the main thread

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._at_once:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: what follows is clearing up
            raise KeyboardInterrupt
        self._ask(number)
