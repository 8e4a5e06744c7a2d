"""The processes of a training on Ray, by what they are: to kill one, or to suspend it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from tests.leftovers import started_by


def workers(mark: Path) -> list[psutil.Process]:
    """The ranks, in no order."""
    return _of(mark, "RayTrainWorker")


def drivers(mark: Path) -> list[psutil.Process]:
    """The program itself; not its launcher, which names it too."""
    return [process for process in started_by(mark) if command_line(process)[1:4] == ["-m", "trainer", "train"]]


def gcs(mark: Path) -> list[psutil.Process]:
    """What knows all nodes and actors; one of each cluster, on its head."""
    return _of(mark, "gcs/gcs_server")


def raylets(mark: Path) -> list[psutil.Process]:
    """One of each node."""
    return _of(mark, "raylet/raylet")


def raylet_of(worker: psutil.Process) -> psutil.Process:
    """The one that has started a worker."""
    return next(parent for parent in worker.parents() if parent.name() == "raylet")


def is_head(raylet: psutil.Process) -> bool:
    """Whether it is the node on which the driver is."""
    return "--head" in raylet.cmdline()


def ended(process: psutil.Process) -> bool:
    """Whether nothing is left of it but perhaps its exit code."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def command_line(process: psutil.Process) -> list[str]:
    """Program and arguments; none where it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def _of(mark: Path, name: str) -> list[psutil.Process]:
    return [process for process in started_by(mark) if name in "".join(command_line(process)[:1])]
