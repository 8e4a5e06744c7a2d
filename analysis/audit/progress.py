"""What an audit shows of its progress: nothing, unless the caller shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Track = Callable[[str, int], AbstractContextManager[Advance]]
"""What shows progress: given what is done and of how many things, it yields what is called with those that were done
since."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:  # noqa: ARG001
    """Shows no progress."""
    yield lambda _: None
