"""What a person sees while a run trains: a live line in a terminal, plain lines in a log."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from trainer.progress import say
from trainer.rundir import Json

PLAIN_EVERY_S = 30.0
BAR_WIDTH = 30


class Display:
    """Shows the messages of a run as they come: starts, steps, evaluations, epochs."""

    def __init__(self, console: Console, *, live: bool = True):
        """`live` may be switched off, so that a debugger's prompt is not drawn over."""
        self.console = console
        self._live = Live(console=console, refresh_per_second=4) if live and console.is_terminal else None
        self._said = time.monotonic()
        self._stopping = False

    def __enter__(self) -> Display:
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
        """Shows what goes on before there is a step to show."""
        if self._live:
            self._live.update(Spinner("dots", Text(what)))
        else:
            say(what, self.console)

    def stopping(self) -> None:
        """Says, once, that a request to stop has been heard."""
        if not self._stopping:
            self._stopping = True
            say("stopping at the next step, with a checkpoint", self.console)

    def show(self, message: Json) -> None:
        """Shows one message."""
        if message["phase"] in ("start", "mirror", "note"):
            for line in message["lines"]:
                say(line, self.console)
            if self._live:
                self.waiting("the first step")
        elif message["phase"] == "epoch":
            say(epoch_line(message["record"]), self.console)
        elif message["phase"] == "diverged":
            pass  # it is said at the end
        elif self._live:
            self._live.update(step_bar(message, self.console.width))
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            say(step_line(message), self.console)


def epoch_line(record: Json) -> str:
    """An epoch that has ended, in one line."""
    return (
        f"epoch {record['epoch']:>3}  train loss {record['train/loss']:.4f}  val loss {record['val/loss']:.4f}  "
        f"val accuracy {record['val/accuracy']:.4f}  balanced {record['val/balanced_accuracy']:.4f}  "
        f"{record['tiles_per_s']:,.0f} tiles/s"
    )


def step_line(message: Json) -> str:
    """How far a run is, in one line."""
    if message["phase"] != "train":
        return f"evaluating {message['phase']}: {message['done']:,} of {message['total']:,} tiles"
    left = timedelta(seconds=round((message["total"] - message["done"]) / message["tiles_per_s"]))
    return (
        f"epoch {message['epoch']}/{message['epochs']}  step {message['step']}  loss {message['loss']:.4f}  "
        f"{message['tiles_per_s']:,.0f} tiles/s  {left} left"
    )


def step_bar(message: Json, width: int) -> Table:
    """A bar as long as the line beside it leaves room for."""
    line = step_line(message)
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(message["total"], message["done"], width=max(5, min(BAR_WIDTH, width - len(line) - 2))), line
    )
    return row
