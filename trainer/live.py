"""What a person sees while something goes on: a live part of a terminal, or plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import ClassVar, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from trainer.progress import say

PLAIN_EVERY_S = 30.0


class LiveDisplay:
    """Draws while the context lasts, where there is a terminal; subclasses say what."""

    STOPPING: ClassVar[str]
    """What to say when a request to stop has been heard."""

    def __init__(self, console: Console, *, live: bool = True):
        """`live` may be switched off, so that a debugger's prompt is not drawn over."""
        self.console = console
        self._live = Live(console=console, refresh_per_second=4) if live and console.is_terminal else None
        self._said = time.monotonic()
        self._stopping = False

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update("")
            self._live.stop()

    def waiting(self, what: str) -> None:
        """Shows what goes on before there is anything else to show."""
        if self._live:
            self._live.update(Spinner("dots", Text(what)))
        else:
            say(what, self.console)

    def stopping(self) -> None:
        """Says, once, that a request to stop has been heard."""
        if not self._stopping:
            self._stopping = True
            say(self.STOPPING, self.console)

    def _say_now_and_then(self, line: str) -> None:
        """One of the plain lines of a log, unless the last one was just now."""
        if time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            say(line, self.console)
