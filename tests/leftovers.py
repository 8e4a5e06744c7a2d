"""What a test has started, and that nothing of it stays behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.private import HELD

MARK = "STARTED_BY"
"""The environment's name for what marks all processes that a test has started."""
END_S = 20.0


@pytest.fixture
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of what a test has started, and no directory that nobody holds, stays behind."""
    monkeypatch.setenv(MARK, str(tmp_path))
    before = private_directories()
    yield
    deadline = time.monotonic() + END_S
    while (left := [*started_by(tmp_path), *unheld(private_directories() - before)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in started_by(tmp_path):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left


def started_by(mark: Path) -> list[psutil.Process]:
    """All processes of this mark but this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(mark):
                found.append(process)
    return found


def private_directories() -> set[Path]:
    """Those of all programs of this machine."""
    return set(Path("/tmp").glob("tg-*"))


def unheld(directories: set[Path]) -> list[Path]:
    """Of private directories, those that no program has."""
    left = []
    for directory in directories:
        with suppress(FileNotFoundError, BlockingIOError, PermissionError), (directory / HELD).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.append(directory)
    return left
