"""What tests of searches share: the command, and what it has left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.conftest import REPOSITORY
from trainer.rundir import Json, SearchDir, read_json

BASE: dict[str, object] = {
    "run.name": "search",
    "search.searcher": "random",
    "search.scheduler": "none",
    "search.share_trunk": False,
    "search.final_seeds": 0,
    "search.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    "loop.keep": 2,
}


MARK, MARKED = "TISSUEGRID_TEST", uuid.uuid4().hex
"""In the environment of every process that a command here starts."""


class Command:
    """`python -m trainer tune` in a process group of its own."""

    def __init__(self, config: Path, *flags: str, **variables: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "tune", str(config), *flags],
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables, MARK: MARKED},
        )

    def end(self, limit_s: float = 300) -> tuple[int, str]:
        """Its exit code and what it printed."""
        output, _ = self.process.communicate(timeout=limit_s)
        return self.process.returncode, output

    def kill(self) -> None:
        """SIGKILL to the driver alone: what it started is left to itself."""
        self.process.kill()
        self.process.communicate()


def search_of(config: Path) -> SearchDir:
    run = yaml.safe_load(config.read_text())["run"]
    return SearchDir(Path(run["storage"]) / run["name"])


def trials_of(config: Path) -> list[Json]:
    return [read_json(run.trial_file) for run in search_of(config).trials()]


def wait_until(reached: Callable[[], bool], command: Command, limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        assert command.process.poll() is None, command.end()
        time.sleep(0.1)


def started_here() -> list[str]:
    """The processes that commands of these tests have started, and those that these have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == MARKED and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline()[:3])}")
    return found
