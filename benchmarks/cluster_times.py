"""How long a small training takes to begin, stop, and begin again on a Slurm cluster; and what it loses by that.

Needs root and Slurm: the cluster is made for this, of namespaced nodes on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, spread, write
from tests.conftest import make_stores
from tests.slurm.cluster import Job, Slurm, bring_up, take_down
from tests.slurm.training import make_config, train
from trainer.checkpoint import listed
from trainer.rundir import RunDir

FIGURES = {
    "queue": "sbatch to the batch script's start",
    "cluster": "... to a Ray cluster of both nodes",
    "plan": "... to the trainer's first word",
    "workers": "... to its workers' claim of the run",
    "step": "... to the first step's checkpoint",
    "start": "sbatch to first step, in all",
    "stop": "stop request (USR1) to the job's end",
    "stop lost": "steps lost by it",
    "requeue": "from there to the next step",
    "loss": "a node's loss (elastic, 3 to 2 nodes) to the next step",
    "loss lost": "steps lost by it",
    "move": "a node's loss (2 nodes, one to spare) to the next step",
    "move lost": "steps lost by it",
    "cut": "a node's link cut for ever (elastic, 3 to 2 nodes) to the next step",
    "cut lost": "steps lost by it",
    "left": "processes, directories, meetings left, after all",
}


class Watch:
    """Seconds between things that happen to a job."""

    def __init__(self, job: Job):
        self._job = job
        self._last = self._start = time.monotonic()

    def until(self, so: Callable[[], bool], what: str) -> float:
        """Seconds from the last thing to this one."""
        self._job.wait_until(so, what)
        before, self._last = self._last, time.monotonic()
        return self._last - before

    @property
    def total(self) -> float:
        """Seconds from the beginning to the last thing."""
        return self._last - self._start


def newest(run: RunDir, attempt: int = 0) -> int:
    """The last step that an attempt, or a later one, has committed."""
    return max((c.step for c in listed(run) if c.attempt >= attempt), default=-1)


def start_and_stop(slurm: Slurm, stores: tuple[Path, Path], folder: Path) -> dict[str, float]:
    """Two nodes: from sbatch to the first step, stopped, and on after the requeue."""
    config, run = make_config(stores, folder, "stop", loop__epochs=500)
    job = train(slurm, config)
    watch, found = Watch(job), {}
    found["queue"] = watch.until(lambda: job.fact("JobState") == "RUNNING", "its start")
    found["cluster"] = watch.until(lambda: "Ray cluster of 2 nodes is up" in job.said, "its cluster")
    found["plan"] = watch.until(lambda: "run stop:" in job.said, "the trainer's first word")
    found["workers"] = watch.until(lambda: "attempt 1 begins" in job.said, "its workers")
    found["step"] = watch.until(lambda: newest(run) >= 1, "its first step")
    found["start"] = watch.total
    watch = Watch(job)
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    found["stop"] = watch.until(lambda: job.fact("JobState") != "RUNNING", "its end")
    before = newest(run)
    found["requeue"] = watch.until(lambda: newest(run, 2) > before, "its next step")
    found["stop lost"] = before - run.attempts()[2]["resumed_step"]
    return found


def lose_a_node(
    slurm: Slurm, stores: tuple[Path, Path], folder: Path, name: str, how: str, *options: str
) -> dict[str, float]:
    """From a node's loss to the next step, and how many steps had to be taken again."""
    config, run = make_config(stores, folder, name, loop__epochs=500)
    elastic = "--no-kill" in options
    flags = ("--scale.workers", "1:3") if elastic else ()
    job = train(slurm, config, *flags, nodes=3 if elastic else 2, options=options)
    job.wait_until(lambda: newest(run) >= 2, "step 2")
    node = job.nodes[-1]
    slurm.node(*(("link", node, "down") if how == "down" else (how, node)))
    watch, before = Watch(job), newest(run)
    took = watch.until(lambda: newest(run, 2) > before, "the next step")
    lost = before - run.attempts()[2]["resumed_step"]
    job.cancel()
    slurm.node(*(("link", node, "up") if how == "down" else ("boot", node)))
    job.wait_until(lambda: slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * 3, "three nodes")
    return {name: took, f"{name} lost": lost}


def measure(slurm: Slurm, stores: tuple[Path, Path], folder: Path) -> dict[str, float]:
    """One round of all."""
    slurm.jobs.clear()
    found = start_and_stop(slurm, stores, folder)
    slurm.jobs[0].cancel()
    found |= lose_a_node(slurm, stores, folder, "loss", "kill", "--no-kill", "-c", "1")
    found |= lose_a_node(slurm, stores, folder, "move", "kill")
    found |= lose_a_node(slurm, stores, folder, "cut", "down", "--no-kill", "-c", "1")
    time.sleep(15)  # what was killed has that long to be gone
    found["left"] = sum(len(job.left()) for job in slurm.jobs)
    return found


def show(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Prints the table; what to write down."""
    table = Table("", "median", "lowest", "highest", title=f"{len(rounds)} rounds, seconds")
    measured = {name: spread([one[name] for one in rounds]) for name in FIGURES}
    for name, words in FIGURES.items():
        digits = 0 if name.endswith(("lost", "left")) else 1
        table.add_row(words, *(f"{measured[name][key]:.{digits}f}" for key in ("median", "lowest", "highest")))
    Console(width=100).print(table)
    return measured


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_times", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster_times.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as parent:
        folder = Path(parent)
        try:
            slurm = bring_up(folder / "cluster", "3", "--gpus", "0", "--no-epilog")
            stores = make_stores(folder)
            rounds = []
            for number in range(given.rounds):
                (folder / str(number)).mkdir()
                rounds.append(measure(slurm, stores, folder / str(number)))
            measured = show(rounds)
        finally:
            take_down(folder / "cluster")
    write(given.out, {"seconds and steps": measured})


if __name__ == "__main__":
    main()
