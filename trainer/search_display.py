"""What a person sees while a search goes on: a table in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from trainer.ledger import Record
from trainer.live import LiveDisplay
from trainer.progress import say
from trainer.rundir import Json
from trainer.space import Parameters

ROWS = 20
UPDATE_S = 0.5


class SearchDisplay(LiveDisplay):
    """Shows trials as they begin, train and end."""

    STOPPING = "stopping every trial at its next step, with a checkpoint"

    def __init__(self, console: Console, metric: str, mode: str):
        super().__init__(console)
        self._metric, self._sign = metric, {"max": -1, "min": 1}[mode]
        self._rates: dict[str, str] = {}
        self._shown: dict[str, tuple[str, int, int]] = {}
        self._updated = 0.0

    def show(self, message: Json) -> None:
        """Shows one message of a trial."""
        if message["phase"] == "train":
            rate = f"{message['tiles_per_s']:,.0f} tiles/s"
            self._rates |= dict.fromkeys(message["trials"], rate)
        elif message["phase"] == "note":
            for line in message["lines"]:
                say(f"trial {message['run']}: {line}", self.console)

    def update(self, records: Sequence[Record], total: int, *, force: bool = False) -> None:
        """Shows what is known of all trials: what has changed as lines, where they stand as a table."""
        if not force and time.monotonic() - self._updated < UPDATE_S:
            return
        self._updated = time.monotonic()
        for record in records:
            self._say_change(record)
        if self._live:
            self._live.update(Group(self._table(records), Text(self._summary(records, total))))
        else:
            self._say_now_and_then(self._summary(records, total))

    def _say_change(self, record: Record) -> None:
        name, state = record.run, (record.status, record.failures, record.epoch)
        before = self._shown.get(name)
        self._shown[name] = state
        if before is None:
            return
        if record.failures > before[1]:
            say(f"trial {name} {record.notes[-1]}", self.console)
        if record.has_ended and before[0] != record.status:
            say(ended_line(record, self._metric), self.console)

    def _summary(self, records: Sequence[Record], total: int) -> str:
        ended, running = sum(r.has_ended for r in records), sum(r.status == "running" for r in records)
        best = min((r for r in records if r.value is not None), key=self._rank, default=None)
        lead = f"; best {self._metric} so far {best.value:.4f} (trial {best.run})" if best else ""
        return f"{ended} of {total} ended, {running} running{lead}"

    def _rank(self, record: Record) -> float:
        return math.inf if record.value is None else self._sign * record.value

    def _table(self, records: Sequence[Record]) -> Table:
        table = Table(box=None, pad_edge=False)
        keys = list(records[0].parameters) if records else []
        for title in ("trial", *(key.split(".")[1] for key in keys), "status", "epochs", self._metric, ""):
            table.add_column(title, justify="left" if title in ("status", "") else "right")
        running = [r for r in records if r.status == "running"]
        rest = [r for r in records if r.status != "running"]
        for record in [*running, *sorted(rest, key=self._rank)][:ROWS]:
            value = "" if record.value is None else f"{record.value:.4f}"
            rate = self._rates.get(record.run, "") if record.status == "running" else ""
            shown = [described(record.parameters[key]) for key in keys]
            table.add_row(record.run, *shown, record.status, f"{record.epoch}/{record.epochs}", value, rate)
        return table


def ended_line(record: Record, metric: str) -> str:
    """A trial that has ended, in one line."""
    value = "" if record.value is None else f", {metric} {record.value:.4f}"
    why = f": {record.message}" if record.message else ""
    took = f"{record.epoch} of {record.epochs} epochs, {record.seconds:,.0f} s"
    return f"trial {record.run} {record.status} ({described_all(record.parameters)}){value}, {took}{why}"


def described(value: Any) -> str:
    """A parameter's value as a person would write it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def described_all(parameters: Parameters) -> str:
    """Parameters in one line."""
    return ", ".join(f"{key} {described(value)}" for key, value in parameters.items())
