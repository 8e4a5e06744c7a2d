"""What is known of a search's trials: kept in each one's `trial.json`, as it happens, by the program that searches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import RunError
from trainer.rundir import RESTORE, Json, RunDir, now, read_json, write_json
from trainer.space import Parameters

ENDED = ("done", "stopped", "diverged", "failed")


@dataclass
class Record:
    """One trial: what it is, and how far."""

    run: str
    """Its run directory's name: the trial's, or for a final run `<trial>-seed<k>`."""
    trial: str
    number: int
    seed: int
    parameters: Parameters
    epochs: int
    status: str = "waiting"
    epoch: int = 0
    value: float | None = None
    message: str = ""
    notes: list[str] = field(default_factory=list)
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0
    worker_seconds: float = 0.0
    workers: int = 0
    host: str | None = None
    failures: int = 0
    in_a_row: int = 0
    """Failures since its last epoch."""

    @property
    def has_ended(self) -> bool:
        """Whether it is not to go on."""
        return self.status in ENDED


class Ledger:
    """The records of some trials, by name. Several threads may use it."""

    def __init__(self, metric: str, mode: str, check: Callable[[], None]):
        """`check` is called before each write, and raises where this program no longer has the search."""
        self._check = check
        self._metric, self._best = metric, {"max": max, "min": min}[mode]
        self._records: dict[str, Record] = {}
        self._runs: dict[str, RunDir] = {}
        self._since: dict[str, float] = {}
        self._beside: dict[str, set[str]] = {}
        self._one_at_a_time = threading.RLock()

    def add(self, run: RunDir, record: Record) -> None:
        """Takes a trial in, and writes its record where it has none."""
        with self._one_at_a_time:
            self._records[run.name], self._runs[run.name] = record, run
            if not run.trial_file.exists():
                run.path.mkdir(parents=True, exist_ok=True)
                self._write(run.name)

    def take_in(self, runs: Iterable[RunDir]) -> None:
        """Takes trials in as an earlier start left them: what ran then, waits now."""
        for run in runs:
            try:
                record = Record(**read_json(run.trial_file))
            except TypeError:
                raise RunError(f"{run.trial_file}: is damaged (another content than a trial's); {RESTORE}") from None
            self.add(run, record)
            if not record.has_ended:
                self.end(run.name, "waiting", record.message)

    def records(self) -> list[Record]:
        """All of them, as they are now, in the order that they were taken in."""
        with self._one_at_a_time:
            return list(self._records.values())

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def record(self, name: str) -> Record:
        """A trial's record."""
        return self._records[name]

    def retry_failed(self) -> None:
        """Gives trials that failed another chance."""
        for record in self.records():
            if record.status == "failed":
                self.end(record.run, "waiting", record.message)

    def run(self, name: str) -> RunDir:
        """A trial's run directory."""
        return self._runs[name]

    def begin(self, names: Sequence[str], workers: int) -> None:
        """A process has a trial now, or several that train together: these share the workers' time evenly."""
        with self._one_at_a_time:
            together = set(names)
            for name in names:
                record = self._records[name]
                record.status, record.workers = "running", workers
                record.started = record.started or now()
                self._since[name], self._beside[name] = time.monotonic(), together
                self._write(name)

    def epoch(self, name: str, result: Json) -> None:
        """An epoch has ended."""
        with self._one_at_a_time:
            self._advance(self._records[name], result["epoch"], [result[self._metric]])
            self._count_time(name)
            self._write(name)

    def here(self, name: str, host: str) -> None:
        """Where a trial runs."""
        with self._one_at_a_time:
            if self._records[name].host != host:
                self._records[name].host = host
                self._write(name)

    def note(self, name: str, lines: list[str]) -> None:
        """Something else to know of a trial."""
        with self._one_at_a_time:
            self._records[name].notes += lines
            self._write(name)

    def broke(self, name: str, message: str, retries: int) -> None:
        """It ended where it should not have, and is to be started again; has failed, after so many in one epoch."""
        with self._one_at_a_time:
            record = self._records[name]
            self._look(record)
            record.in_a_row += 1
            if record.in_a_row > retries:
                self.end(name, "failed", message)
                return
            record.failures += 1
            record.notes.append(f"broke in epoch {record.epoch + 1} and was started again: {message}")
            record.status = "waiting"
            self._leave(name)
            self._write(name)

    def end(self, name: str, status: str, message: str = "") -> None:
        """It has ended, or (waiting) has been interrupted."""
        with self._one_at_a_time:
            record = self._records[name]
            record.status, record.message = status, message
            record.in_a_row = 0
            self._look(record)
            record.ended = now() if record.has_ended else None
            self._leave(name)
            self._write(name)

    def values(self, name: str) -> list[float]:
        """A trial's value after each epoch; of one that was stopped early, up to the one after which it was.

        Its workers may have gone on while that was decided.

        Raises:
            RunError: where the file that holds them is damaged, or has fewer than are known of.
        """
        record, run = self._records[name], self._runs[name]
        values = [line[self._metric] for line in run.read_metrics()]
        if record.status == "done" and len(values) < record.epoch:
            raise RunError(f"{run.metrics_file}: has {len(values)} of {record.epoch} epochs; {RESTORE}")
        return values[: record.epoch] if record.status == "stopped" else values

    def _look(self, record: Record) -> None:
        """Looks how far a trial has come: it may have saved epochs that it was killed before it could tell of."""
        with suppress(RunError):  # what cannot be read now adds nothing to what was told
            if values := self.values(record.run):
                self._advance(record, len(values), values)

    def _advance(self, record: Record, epoch: int, values: list[float]) -> None:
        if epoch > record.epoch:
            record.epoch, record.in_a_row = epoch, 0
        known = [] if record.value is None else [record.value]
        record.value = self._best([*known, *values])

    def _leave(self, name: str) -> None:
        """Settles the time of all that train together: from now on they share it without this one."""
        together = self._beside.get(name, set())
        for one in together:
            self._count_time(one)
        together.discard(name)
        self._beside.pop(name, None)
        self._since.pop(name, None)

    def _count_time(self, name: str) -> None:
        if (since := self._since.get(name)) is not None:
            record, self._since[name] = self._records[name], time.monotonic()
            spent = self._since[name] - since
            record.seconds += spent
            record.worker_seconds += spent * record.workers / len(self._beside[name])

    def _write(self, name: str) -> None:
        self._check()
        write_json(self._runs[name].trial_file, _rounded(asdict(self._records[name])))


def _rounded(content: dict[str, Any]) -> Json:
    """Seconds to hundredths: nobody needs more, and everybody can read that."""
    return {key: round(value, 2) if key.endswith("seconds") else value for key, value in content.items()}
