"""A control group of a test's own, where one can be made: the kernel kills what takes more memory than it gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory.limit_in_bytes")
KILLS = ("memory.events", "memory.oom_control")
"""As version 2 and version 1 call them."""
NAME = "tissuegrid-tests"
EMPTY_S = 20


class MemoryCgroup:
    """A group of processes that together get no more than `limit` bytes beyond what they had."""

    def __init__(self, path: Path, limit: int):
        self.path = path
        self._file(LIMITS).write_text(str(limit))

    def hold(self, pid: int) -> None:
        """Puts a process in; what it has already stays where it was counted."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        lines = dict(line.split() for line in self._file(KILLS).read_text().splitlines())
        return int(lines["oom_kill"])

    def _file(self, names: tuple[str, str]) -> Path:
        return next(self.path / name for name in names if (self.path / name).exists())


@contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """A group below this process's own; the test is skipped where none can be made."""
    path = _own() / NAME
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here ({error.strerror})")
    try:
        if not any((path / name).exists() for name in LIMITS):
            pytest.skip("the memory controller is not given to groups below this one")
        yield MemoryCgroup(path, limit)
    finally:
        deadline = time.monotonic() + EMPTY_S
        while path.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # what is in it is still ending
                path.rmdir()
            time.sleep(0.05)


def _own() -> Path:
    """The memory cgroup that this process is in."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    of_version_1 = [ROOT / "memory" / path.lstrip("/") for _, controllers, path in lines if "memory" in controllers]
    of_version_2 = [ROOT / path.lstrip("/") for _, controllers, path in lines if not controllers]
    return (of_version_1 or of_version_2)[0]
