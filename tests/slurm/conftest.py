"""A real Slurm cluster of namespaced nodes on this machine, or a skip that says what is missing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY

TOOL = Path(__file__).parent / "slurm_cluster"
CANNOT = 77
LIMIT_S = 300.0


class Slurm:
    """Commands of the cluster, and its jobs."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self._environment = environment

    @property
    def meetings(self) -> Path:
        """Where the nodes of a job find each other."""
        return self.folder.parent / "meetings"

    def __call__(self, *command: str, check: bool = True) -> str:
        """Runs one of Slurm's commands; what it printed."""
        done = subprocess.run(
            command, env=self._environment, cwd=REPOSITORY, text=True, check=check, stdout=subprocess.PIPE
        )
        return done.stdout

    def node(self, action: str, *arguments: str) -> None:
        """kill, boot, hang or link, as `slurm_cluster` does it."""
        subprocess.run([TOOL, "--dir", str(self.folder), action, *arguments], check=True)

    def submit(self, *arguments: str, output: Path) -> Job:
        """Submits a job whose output goes to a file."""
        answer = self("sbatch", "--parsable", f"--output={output}", *arguments)
        return Job(self, answer.strip(), output)


class Job:
    """A submitted job."""

    def __init__(self, slurm: Slurm, number: str, output: Path):
        self.slurm, self.number, self._output = slurm, number, output

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self._output.read_text() if self._output.exists() else ""

    def fact(self, name: str) -> str:
        """One field of `scontrol show job`."""
        facts = dict(
            word.split("=", 1) for word in self.slurm("scontrol", "show", "job", self.number).split() if "=" in word
        )
        return facts[name]

    def wait_until(self, so: Callable[[], bool], what: str) -> None:
        """Until something is so; fails with the job's output where it takes too long."""
        deadline = time.monotonic() + LIMIT_S
        while not so():
            assert time.monotonic() < deadline, f"{what} did not come about:\n{self.said}"
            time.sleep(0.2)

    def end(self) -> str:
        """Waits for its end; the state it ended in."""
        self.wait_until(
            lambda: self.fact("JobState") not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), "its end"
        )
        return self.fact("JobState")

    def left(self) -> list[str]:
        """Processes, on any node, and directories that are still there of this job."""
        mine = f"SLURM_JOB_ID={self.number}"
        processes = []
        for process in psutil.process_iter(["pid", "name"]):
            try:
                if mine in Path(f"/proc/{process.pid}/environ").read_text().split("\0"):
                    processes.append(f"{process.pid} {process.info['name']}")
            except OSError:
                continue
        return processes + [str(path) for path in Path("/tmp").glob(f"tg-{self.number}-*")]

    def cancel(self) -> None:
        """Ends it, whatever state it is in."""
        self.slurm("scancel", self.number)


def bring_up(folder: Path, *arguments: str) -> Slurm:
    """A cluster; skips where this machine cannot have one."""
    made = subprocess.run([TOOL, "--dir", str(folder), "up", *arguments], text=True, capture_output=True, check=False)
    if made.returncode == CANNOT:
        pytest.skip(f"no Slurm cluster here: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    exports = subprocess.run([TOOL, "--dir", str(folder), "env"], text=True, capture_output=True, check=True).stdout
    shown = subprocess.run(["bash", "-c", f"{exports}\nenv -0"], text=True, capture_output=True, check=True).stdout
    environment = dict(line.split("=", 1) for line in shown.split("\0") if "=" in line)
    ours = {"TISSUEGRID_PYTHON": sys.executable, "TISSUEGRID_SHARED": str(folder.parent / "meetings")}
    return Slurm(folder, {**environment, **ours})


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Three nodes of four CPUs without GPUs. Nothing but our own programs cleans up after a job."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as parent:
        folder = Path(parent) / "cluster"
        try:
            yield bring_up(folder, "3", "--gpus", "0", "--no-epilog")
        finally:
            subprocess.run([TOOL, "--dir", str(folder), "down"], check=False)
