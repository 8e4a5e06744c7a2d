"""One run, one job: refuses a second start early. What makes a second writer harmless is the attempt, not this."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trainer.durable import create_exclusive
from trainer.errors import RunError
from trainer.job import job_id, job_restarts
from trainer.rundir import Json, Workplace, json_bytes, now, read_json
from trainer.stall import answered_within

HEARTBEAT_S = 5.0
SILENT_AFTER_S = 4 * HEARTBEAT_S
SETTLE_S = 0.5
FIRST_BEAT = 1_000_000_000
"""Counted from here, all have as many digits: a beat changes some of them and nothing else of the file."""
ENDED = ("Z", "X")
"""States of a process that runs no more (proc(5))."""
HELD_BY = {"host", "boot_id", "pid_namespace", "pid", "process_started", "job", "job_restarts", "since", "beats"}


class RunLock:
    """Holds a run's lock.json, and keeps its heartbeat going, while the context lasts.

    An earlier start of the same batch job is over. A lock of a process of this boot of this host is judged by that
    process; any other by its heartbeat, which must stand still for 20 s by our own clock before the run is taken over.
    The heartbeat is also what notices that the storage does not answer.
    """

    def __init__(self, run: Workplace, limit_s: float = 180.0):
        """Where the storage does not answer for `limit_s`, this process ends, whatever else in it waits for that."""
        self.run, self._limit_s = run, limit_s
        self._ended = threading.Event()
        self._me: Json = {
            "host": socket.gethostname(),
            "boot_id": _boot_id(),
            "pid_namespace": _pid_namespace(),
            "pid": os.getpid(),
            "process_started": _started(os.getpid()),
            "job": job_id(),
            "job_restarts": job_restarts(),
            "since": now(),
        }

    def __enter__(self) -> RunLock:
        taken_over = False
        while not self._create():
            self._refuse_or_remove()
            taken_over = True
        if taken_over:
            time.sleep(SETTLE_S)
        self._file = self._open()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beating.join()
        with answered_within(self._limit_s, self.run.path):
            if self._is_mine():
                with suppress(OSError):  # whoever starts next sees that this process is over
                    self.run.lock_file.unlink(missing_ok=True)
        os.close(self._file)

    def check(self) -> None:
        """Raises a RunError where somebody has taken over what this holds, as after a cut-off that looked like death.

        Who asks before each write leaves the new holder's files alone.
        """
        if taker := self._taker():
            raise RunError(f"{self.run} has been taken over by {taker}, and this start of it ends here")

    def check_heartbeat(self) -> None:
        """As `check`, for who asks often: at the storage only once the heartbeat has found another's lock there."""
        if not self._beating.is_alive():
            self.check()

    def _create(self) -> bool:
        with answered_within(self._limit_s, self.run.path):
            return create_exclusive(self.run.lock_file, self._content(FIRST_BEAT))

    def _open(self) -> int:
        """The file that is this program's, whatever name it has later: a late beat reaches nobody else's.

        Of two that found the same dead lock, the slower one has removed the quicker one's; that one ends here.
        """
        if not self._is_mine():
            raise RunError(f"{self.run} was started twice in the same moment, and the other start has it")
        with answered_within(self._limit_s, self.run.path):
            return os.open(self.run.lock_file, os.O_WRONLY)

    def _content(self, beat: int) -> bytes:
        return json_bytes({**self._me, "beats": beat})

    def _beat(self) -> None:
        for beat in itertools.count(FIRST_BEAT + 1):
            if self._ended.wait(HEARTBEAT_S):
                return
            with answered_within(self._limit_s, self.run.path):
                if self._taker():
                    return
                with suppress(OSError):  # what cannot be written now is no reason to be taken for dead later
                    os.pwrite(self._file, self._content(beat), 0)
                    os.fsync(self._file)

    def _is_mine(self) -> bool:
        """Whether nobody has taken the run over, as somebody may while this process is suspended."""
        try:
            return self._me.items() <= read_json(self.run.lock_file).items()
        except RunError:
            return False

    def _taker(self) -> str | None:
        """Who has taken it over, for certain: a storage that does not answer now has not given it to anybody."""
        try:
            holder = json.loads(self.run.lock_file.read_bytes())
        except FileNotFoundError:
            return "another start" if self.run.path.exists() else None
        except (OSError, ValueError):
            return None
        return None if self._me.items() <= holder.items() else f"process {holder.get('pid')} on {holder.get('host')}"

    def _refuse_or_remove(self) -> None:
        """Raises a RunError where the holder lives, else removes what it left behind."""
        try:
            holder = read_json(self.run.lock_file)
        except RunError:
            if not self.run.lock_file.exists():
                return  # released just now
            holder = {}
        if set(holder) >= HELD_BY and is_alive(holder, self.run.lock_file):
            raise RunError(
                f"{self.run} is {self.run.BUSY} by process {holder['pid']} on {holder['host']} since "
                f"{holder['since']}; wait for it, stop it, or {self.run.ANOTHER}"
            )
        try:
            self.run.lock_file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self.run.lock_file}: is damaged and cannot be removed ({error.strerror})") from None


def is_alive(holder: Json, file: Path) -> bool:
    """Whether the process that holds a lock still runs."""
    if holder["job"] is not None and holder["job"] == job_id() and holder["job_restarts"] < job_restarts():
        return False  # an earlier start of this very job, which was requeued
    if (holder["boot_id"], holder["pid_namespace"]) == (_boot_id(), _pid_namespace()):
        return bool(_started(holder["pid"]) == holder["process_started"])
    if holder["host"] == socket.gethostname() and holder["boot_id"] != _boot_id():
        return False  # this host has been restarted since
    deadline = time.monotonic() + SILENT_AFTER_S
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 5)
        if not file.exists():
            return False
        with suppress(RunError):  # a storage that does not answer says nothing about the holder
            if read_json(file)["beats"] != holder["beats"]:
                return True
    return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    """Containers share a boot and not their processes' numbers."""
    return str(Path("/proc/self/ns/pid").readlink())


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: tells it from a later one with the same number.

    None where there is none, or only its exit code, kept for a parent that has not asked for it yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in ENDED else fields[19]
