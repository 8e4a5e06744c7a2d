"""A storage that does not answer: nothing can take a call back that waits for it, so the process ends, and says why."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAILED = 1


@contextmanager
def answered_within(limit_s: float, place: Path) -> Iterator[None]:
    """Ends this process where what is done at a place of the storage meanwhile takes longer than the limit.

    At once, as a kill does: whatever clears up might wait for the same storage.
    """
    timer = threading.Timer(limit_s, _end, (limit_s, place))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(limit_s: float, place: Path) -> None:
    print(
        f"error: {place}: the storage has not answered for {limit_s:g} s (scale.timeout_s); see to it: the same "
        "command then goes on",
        file=sys.stderr,
        flush=True,
    )
    os._exit(FAILED)
