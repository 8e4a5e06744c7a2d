"""One run, one job: refuses a second start early. What makes a second writer harmless is the attempt, not this."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from trainer.errors import RunError
from trainer.rundir import Json, RunDir, create_exclusive, now, read_json, write_json

HEARTBEAT_S = 5.0
SILENT_AFTER_S = 4 * HEARTBEAT_S


class RunLock:
    """Holds a run's lock.json, and keeps its heartbeat going, while the context lasts.

    A lock of a process of this boot of this host is judged by that process; any other by its heartbeat, which must
    stand still for 20 s by our own clock before the run is taken over.
    """

    def __init__(self, run: RunDir):
        self.run = run
        self._ended = threading.Event()
        self._me: Json = {
            "host": socket.gethostname(),
            "boot_id": _boot_id(),
            "pid": os.getpid(),
            "process_started": _started(os.getpid()),
            "since": now(),
        }

    def __enter__(self) -> RunLock:
        while not create_exclusive(self.run.lock_file, _content(self._me, 0)):
            self._refuse_or_remove()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beating.join()
        self.run.lock_file.unlink(missing_ok=True)

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(HEARTBEAT_S):
            beats += 1
            write_json(self.run.lock_file, {**self._me, "beats": beats})

    def _refuse_or_remove(self) -> None:
        """Raises a RunError where the holder lives, else removes what it left behind."""
        try:
            holder = read_json(self.run.lock_file)
        except RunError:
            return  # released just now
        if is_alive(holder, self.run.lock_file):
            raise RunError(
                f"run {self.run.name} is being trained by process {holder['pid']} on {holder['host']} since "
                f"{holder['since']}; wait for it, stop it, or give this run another --run.name"
            )
        self.run.lock_file.unlink(missing_ok=True)


def is_alive(holder: Json, file: Path) -> bool:
    """Whether the process that holds a lock still runs."""
    if holder["boot_id"] == _boot_id():
        return bool(_started(holder["pid"]) == holder["process_started"])
    if holder["host"] == socket.gethostname():
        return False  # this host has been restarted since
    deadline = time.monotonic() + SILENT_AFTER_S
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 5)
        try:
            if read_json(file)["beats"] != holder["beats"]:
                return True
        except RunError:
            return False
    return False


def _content(me: Json, beats: int) -> bytes:
    import json

    return json.dumps({**me, "beats": beats}).encode()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: tells it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None
