"""`python -m trainer train` as a command of its own, and waiting for what becomes of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import REPOSITORY

LIMIT_S = 480


class Command:
    """`python -m trainer train` in a process group of its own; `launcher` is the command that it is an argument of."""

    def __init__(self, config: Path, *flags: str, launcher: Sequence[str] = ()):
        # A pipe that nobody reads would hold it up.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "trainer", "train", str(config), *flags],
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
        )

    def end(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        code = self.process.wait(LIMIT_S)
        with self._printed:
            self._printed.seek(0)
            return code, self._printed.read().decode(errors="replace")


def over_nodes(nodes: int, shared: Path) -> list[str]:
    """The launcher of a command over so many pretended nodes."""
    return [sys.executable, "-m", "cluster", "run", "--nodes", f"local:{nodes}", "--shared", str(shared), "--"]


def wait_until(so: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> float:
    """Waits until something is so; answers with the seconds that it took."""
    started = time.monotonic()
    while not so():
        assert time.monotonic() - started < limit_s, f"{what}: not in {limit_s:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - started
