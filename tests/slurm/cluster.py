"""A real Slurm cluster of namespaced nodes on this machine, and its jobs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.allocation import hostnames
from tests.conftest import REPOSITORY

TOOL = Path(__file__).parent / "slurm_cluster"
CANNOT = 77
LIMIT_S = 300.0


Lose = Callable[[str, str], None]
"""Takes a node, or its link, away."""


class CannotError(Exception):
    """This machine cannot have such a cluster, and why."""


class Slurm:
    """Commands of the cluster, and its jobs."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.jobs: list[Job] = []
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
        self.jobs.append(Job(self, answer.strip(), output))
        return self.jobs[-1]


class Job:
    """A submitted job."""

    def __init__(self, slurm: Slurm, number: str, output: Path):
        self.slurm, self.number, self._output = slurm, number, output

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self._output.read_text() if self._output.exists() else ""

    def facts(self, name: str) -> list[str]:
        """A field of `scontrol show job`, of each task where it is an array."""
        words = self.slurm("scontrol", "show", "job", self.number).split()
        return [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]

    def fact(self, name: str) -> str:
        """The same, where all tasks agree."""
        (fact,) = set(self.facts(name))
        return fact

    @property
    def nodes(self) -> list[str]:
        """The names of its nodes, the first one first."""
        return hostnames(self.fact("NodeList"))

    def wait_until(self, so: Callable[[], bool], what: str) -> None:
        """Until something is so; fails with the job's output where it takes too long."""
        deadline = time.monotonic() + LIMIT_S
        while not so():
            assert time.monotonic() < deadline, f"{what} did not come about:\n{self.said}"
            time.sleep(0.1)

    @property
    def ended(self) -> bool:
        """Whether it is over for good."""
        return not {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"} & set(self.facts("JobState"))

    def end(self) -> str:
        """Waits for its end; the state it ended in."""
        self.wait_until(lambda: self.ended, "its end")
        return self.fact("JobState")

    def left(self) -> list[str]:
        """Processes, on any node, directories and meetings that are still there of this job."""
        numbers = self.facts("JobId")
        processes = [f"{pid} {variables.get('_', '')}" for pid, variables in self.processes().items()]
        paths = [Path("/tmp").glob(f"tg-{number}-*") for number in numbers]
        paths += [self.slurm.meetings.glob(f"*-{number}-*") for number in numbers]
        return processes + [str(path) for found in paths for path in found]

    def processes(self) -> dict[int, dict[str, str]]:
        """The environment of each of its processes, on any node, by pid."""
        numbers, found = self.facts("JobId"), {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                if variables.get("SLURM_JOB_ID") in numbers:
                    found[process.pid] = variables
        return found

    def cancel(self) -> None:
        """Ends it, whatever state it is in."""
        self.slurm("scancel", self.number)
        self.end()


def bring_up(folder: Path, *arguments: str) -> Slurm:
    """Starts a cluster with its files in `folder`.

    Raises:
        CannotError: where this machine cannot have one.
    """
    made = subprocess.run([TOOL, "--dir", str(folder), "up", *arguments], text=True, capture_output=True, check=False)
    if made.returncode == CANNOT:
        raise CannotError(f"no Slurm cluster here: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    exports = subprocess.run([TOOL, "--dir", str(folder), "env"], text=True, capture_output=True, check=True).stdout
    shown = subprocess.run(["bash", "-c", f"{exports}\nenv -0"], text=True, capture_output=True, check=True).stdout
    environment = dict(line.split("=", 1) for line in shown.split("\0") if "=" in line)
    ours = {"TISSUEGRID_PYTHON": sys.executable, "TISSUEGRID_SHARED": str(folder.parent / "meetings")}
    return Slurm(folder, {**environment, **ours})


def take_down(folder: Path) -> None:
    """Ends it, and removes every trace of it."""
    subprocess.run([TOOL, "--dir", str(folder), "down"], check=False)
