"""Holds a run's lock until it is killed, by a clock that is wrong by so many hours: `holder RUN HOURS HEARTBEAT_S`."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainer import lock
from trainer.rundir import Json, RunDir, write_json


def hold(run: RunDir, wrong: timedelta, heartbeat_s: float) -> None:
    """What this process writes has the times of its own clock, as on a storage of another host."""

    def write_at_wrong_time(file: Path, content: Json) -> None:
        write_json(file, content)
        at = (datetime.now(UTC) + wrong).timestamp()
        os.utime(file, (at, at))

    lock.HEARTBEAT_S = heartbeat_s
    lock.now = lambda: (datetime.now(UTC) + wrong).isoformat(timespec="seconds")
    lock.write_json = write_at_wrong_time  # type: ignore[assignment]
    with lock.RunLock(run):
        while True:
            time.sleep(60)


if __name__ == "__main__":
    hold(RunDir(Path(sys.argv[1])), timedelta(hours=float(sys.argv[2])), float(sys.argv[3]))
