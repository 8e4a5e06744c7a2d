"""What a person sees while a search goes on: its table in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from trainer.ledger import Record
from trainer.live import LiveDisplay
from trainer.progress import say
from trainer.rundir import Json, SearchDir
from trainer.space import Parameters
from trainer.wording import counted

UPDATE_S = 1.0
DRAW_S = 5.0  # some files of each trial are read for it
Draw = Callable[[Path, int, int], Iterable[RenderableType]]
"""Draws what is known of a search, in so many columns and lines of a terminal."""


class SearchDisplay(LiveDisplay):
    """Shows trials as they begin, train and end."""

    STOPPING = "stopping every trial at its next step, with a checkpoint"

    def __init__(self, console: Console, search: SearchDir, metric: str, mode: str, draw: Draw):
        super().__init__(console)
        self._search, self._draw = search, draw
        self._what = "trial"
        self._metric, self._sign = metric, {"max": -1, "min": 1}[mode]
        self._rates: dict[str, float] = {}
        self._shown: dict[str, tuple[str, int]] = {}
        self._updated = -math.inf
        self._drawn = -math.inf
        self._table: list[RenderableType] = []

    def show(self, message: Json) -> None:
        """Shows one message of a trial."""
        if message["phase"] == "train":
            self._rates[message["trials"][0]] = message["tiles_per_s"]
        elif message["phase"] == "note":
            for line in message["lines"]:
                say(f"{self._what} {message['run']}: {line}", self.console)

    def begin(self, what: str, records: Sequence[Record], total: int) -> None:
        """Shows where trials, or final runs, stand before they are trained: what happened to them before is no news."""
        self._what = what
        self._shown |= {record.run: (record.status, record.failures) for record in records}
        self.update(records, total, force=True)

    def update(self, records: Sequence[Record], total: int, *, force: bool = False) -> None:
        """Shows what is known of all trials: what has changed as lines, where they stand as a table."""
        if not force and time.monotonic() - self._updated < UPDATE_S:
            return
        self._updated = time.monotonic()
        for record in records:
            self._say_change(record)
        if self._live:
            if force or time.monotonic() - self._drawn >= DRAW_S:
                self._draw_table()
            self._live.update(Group(*self._table, Text(self._summary(records, total))))
        else:
            self._say_now_and_then(self._summary(records, total))

    def _draw_table(self) -> None:
        """Draws the table anew; the last one stays where files cannot be read now, for that ends no search."""
        self._drawn = time.monotonic()
        width, height = self.console.size
        with suppress(Exception):
            self._table = list(self._draw(self._search.path, width, height - 2))

    def _say_change(self, record: Record) -> None:
        status, failures = self._shown.get(record.run, ("waiting", 0))
        self._shown[record.run] = record.status, record.failures
        if record.failures > failures:
            say(f"{self._what} {record.run} {record.notes[-1]}", self.console)
        if record.has_ended and status != record.status:
            say(f"{self._what} {ended_line(record, self._metric)}", self.console)

    def _summary(self, records: Sequence[Record], total: int) -> str:
        ended, running = sum(r.has_ended for r in records), [r.run for r in records if r.status == "running"]
        far = f"{ended} of {counted(total, self._what)} ended"
        if not running:
            return far
        best = min((r for r in records if r.value is not None), key=self._rank, default=None)
        lead = f"; best {self._metric} so far {best.value:.4f} ({self._what} {best.run})" if best else ""
        rate = sum(self._rates.get(run, 0.0) for run in running)
        speed = f" at {rate:,.0f} tiles/s" if rate else ""
        return f"{far}, {len(running)} running{speed}{lead}"

    def _rank(self, record: Record) -> float:
        return math.inf if record.value is None else self._sign * record.value


def ended_line(record: Record, metric: str) -> str:
    """How a trial has ended, in one line."""
    value = "" if record.value is None else f", {metric} {record.value:.4f}"
    why = f": {record.message}" if record.message else ""
    took = f"{record.epoch} of {record.epochs} epochs, {record.worker_seconds:,.0f} worker-seconds"
    return f"{record.run} {record.status} ({described_all(record.parameters)}){value}, {took}{why}"


def described(value: Any) -> str:
    """A parameter's value as a person would write it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def described_all(parameters: Parameters) -> str:
    """Parameters in one line."""
    return ", ".join(f"{key} {described(value)}" for key, value in parameters.items())
