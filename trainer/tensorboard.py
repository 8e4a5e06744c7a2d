"""Event files for TensorBoard: what metrics.jsonl says of a run, epoch by epoch, and what a trial's parameters were."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.durable import naming
from trainer.rundir import Json

HPARAMS = ".hparams"
TOLD_OTHERWISE = {"epoch", "step", "attempt", "world_size"}


def with_events(report: Callable[[Json], bool], folder: Path, attempt: int) -> Callable[[Json], bool]:
    """`report`, which also writes each epoch's figures to an event file of this attempt.

    What an earlier attempt wrote of an epoch that is trained again does not count, as its first event says. Where it
    cannot be written, that is said, and is no reason to train no more.
    """
    files: list[_EventFile] = []

    def write(record: Json) -> None:
        if not files:
            files.append(_EventFile(folder, f".a{attempt:04d}"))
            files[0].begin(record["epoch"])
        for key in record.keys() - TOLD_OTHERWISE:
            files[0].scalar(key, record[key], record["epoch"])
        files[0].flush()

    def report_and_write(message: Json) -> bool:
        if message["phase"] == "epoch":
            try:
                write(message["record"])
            except OSError as error:
                files.clear()  # a file that ends in the middle of an event: what follows goes into another
                lost = f"TensorBoard will not show epoch {message['record']['epoch']}: {error}"
                report({"phase": "note", "lines": [lost]})
        return report(message)

    return report_and_write


def write_hparams(folder: Path, parameters: Mapping[str, Any], metric: str) -> None:
    """Writes a trial's parameters, once, for TensorBoard's HParams, which finds the metric among the run's figures."""
    if any(folder.glob(f"*{HPARAMS}")):
        return
    from tensorboardX.summary import hparams

    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in parameters.items()}
    file = _EventFile(folder, HPARAMS)
    for summary in hparams(plain, {metric: 0.0}):
        file.write(summary=summary)
    file.flush()


class _EventFile:
    """One event file. tensorboardX's SummaryWriter writes from a queue that nobody can wait for; this one at once."""

    def __init__(self, folder: Path, suffix: str):
        from tensorboardX.event_file_writer import EventsWriter  # slow to import

        self._folder = folder
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), suffix)
        weakref.finalize(self, _close, self._writer)

    def begin(self, epoch: int) -> None:
        """Says that what other files have from this epoch on is void."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self.write(step=epoch, file_version="brain.Event:2")
        self.write(step=epoch, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, key: str, value: float, epoch: int) -> None:
        """Adds a figure of an epoch."""
        from tensorboardX.summary import scalar

        self.write(step=epoch, summary=scalar(key, value))

    def write(self, **content: Any) -> None:
        """Adds an event."""
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), **content))

    def flush(self) -> None:
        """Brings all of it to the disk."""
        with naming(self._folder):
            self._writer.flush()


def _close(writer: Any) -> None:
    with suppress(OSError):  # of what could not be written it was said when it was flushed
        writer.close()
