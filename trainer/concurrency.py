"""How many trials of a search run at once, and on what each, so that none waits for what others hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import ScaleSection
from trainer.errors import UsageError
from trainer.scale import Machine, Scale, use_gpus


@dataclass(frozen=True)
class Concurrency:
    """`trials` at once, each of this scale."""

    trials: int
    scale: Scale

    @property
    def cpus(self) -> int:
        """Cores that all of them need."""
        return self.trials * self.scale.workers * self.scale.threads

    @property
    def gpus(self) -> int:
        """Whole GPUs that all of them need."""
        if self.scale.gpu and self.scale.gpus_per_worker < 1:
            return math.ceil(self.trials / math.floor(1 / self.scale.gpus_per_worker + 1e-9))
        return self.trials * self.scale.gpus

    def __str__(self) -> str:
        """In words."""
        shared = f" on {self.scale.gpus_per_worker} GPU" if self.scale.gpu and self.scale.gpus_per_worker < 1 else ""
        at_once = f"{self.trials} trials at once, each with" if self.trials > 1 else "one trial at a time, with"
        return f"{at_once} {self.scale}{shared}"


def concurrency(asked: ScaleSection, machine: Machine, trials: int) -> Concurrency:
    """Settles what is `auto` for `trials` trials: one worker each, and the cores shared among those that fit.

    Raises:
        UsageError: where not even one trial fits, or its workers cannot be a fixed number.
    """
    gpu = use_gpus(asked, machine)
    workers = 1 if asked.workers == "auto" else asked.workers
    if isinstance(workers, str):
        raise UsageError(f"scale.workers: {workers}: the trials of a search have a fixed number of workers; give one")
    if gpu and asked.gpus_per_worker < 1 < workers:
        raise UsageError(
            f"scale.gpus_per_worker: with {asked.gpus_per_worker}, the {workers} workers of a trial would share a GPU, "
            "over which they cannot talk to each other; set scale.workers: 1, or whole GPUs"
        )
    share = asked.gpus_per_worker if gpu else 0
    at_most = min(trials, _places(machine, share, threads=1) // workers)
    threads = _threads(asked, machine, share, max(1, at_most) * workers)
    places = _places(machine, share, threads)
    if places < workers:
        raise UsageError(_does_not_fit(machine, share, threads, workers))
    scale = Scale(workers, workers, gpu, asked.gpus_per_worker, threads)
    return Concurrency(min(trials, places // workers), scale)


def _places(machine: Machine, share: float, threads: int) -> int:
    """Workers that fit on all nodes. A worker's fraction of a GPU is of one, its whole GPUs are of one node."""
    return sum(min(cores // threads, _on_gpus(gpus, share, cores)) for cores, gpus in machine.each)


def _on_gpus(gpus: int, share: float, without: int) -> int:
    """Workers that a node's GPUs are enough for; where they need none, as many as `without`."""
    if share == 0:
        return without
    return gpus * math.floor(1 / share + 1e-9) if share < 1 else gpus // int(share)


def _threads(asked: ScaleSection, machine: Machine, share: float, workers: int) -> int:
    """Cores of a worker: what was asked for, else an even share of a node's that leaves all of them room."""
    if asked.cpus_per_worker != "auto":
        return asked.cpus_per_worker
    threads = max(1, sum(cores for cores, _ in machine.each) // workers)
    while threads > 1 and _places(machine, share, threads) < workers:
        threads -= 1
    return threads


def _does_not_fit(machine: Machine, share: float, threads: int, workers: int) -> str:
    where = f"the {machine.nodes} nodes of the cluster have" if machine.cluster else "this machine has"
    had = f"{sum(cores for cores, _ in machine.each)} cores" + (f" and {machine.gpus} GPUs" if share else "")
    each = f"{threads} core{'s' if threads > 1 else ''}" + (f" and {share} GPU" if share else "")
    return (
        f"scale.workers: not one trial of {workers} workers with {each} each fits: {where} {had}; lower scale.workers, "
        "scale.cpus_per_worker or scale.gpus_per_worker"
    )
