"""A storage that does not answer: nothing can take a call back that waits for it, so the process ends, and says why."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAILED = 1
SUSPENDED_S = 5.0
"""A wait that ends so much later than it should was suspended, and what it waits for with it."""
SAYING_S = 5.0


@contextmanager
def answered_within(limit_s: float, place: Path) -> Iterator[None]:
    """Ends this process where what is done at a place of the storage meanwhile takes longer than the limit.

    At once, as a kill does: whatever clears up might wait for the same storage.
    """
    answered = threading.Event()
    threading.Thread(target=_watch, args=(answered, limit_s, place), daemon=True, name="storage").start()
    try:
        yield
    finally:
        answered.set()


def _watch(answered: threading.Event, limit_s: float, place: Path) -> None:
    suspended = True
    while suspended:
        began = time.monotonic()
        if answered.wait(limit_s):
            return
        suspended = time.monotonic() - began > limit_s + SUSPENDED_S
    threading.Thread(target=_say, args=(limit_s, place), daemon=True).start()
    time.sleep(SAYING_S)  # what it is said to may be a file of the same storage
    os._exit(FAILED)


def _say(limit_s: float, place: Path) -> None:
    print(
        f"error: {place}: the storage has not answered for {limit_s:g} s (scale.timeout_s); see to it: the same "
        "command then goes on",
        file=sys.stderr,
        flush=True,
    )
    os._exit(FAILED)
