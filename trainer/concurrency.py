"""How many trials of a search run at once, and on what each, so that none waits for what others hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import ScaleSection
from trainer.errors import UsageError
from trainer.scale import Machine, Scale, threads_each, use_gpus
from trainer.wording import counted


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
    at_most = min(trials, machine.places(share, 1) // workers)
    threads = threads_each(asked, machine, share, max(1, at_most) * workers)
    places = machine.places(share, threads)
    if places < workers:
        raise UsageError(_does_not_fit(machine, share, threads, workers))
    scale = Scale(workers, workers, gpu, asked.gpus_per_worker, threads)
    return Concurrency(min(trials, places // workers), scale)


def _does_not_fit(machine: Machine, share: float, threads: int, workers: int) -> str:
    where = f"the {machine.nodes} nodes of the cluster have" if machine.cluster else "this machine has"
    had = f"{sum(cores for cores, _ in machine.each)} cores" + (f" and {machine.gpus} GPUs" if share else "")
    each = counted(threads, "core") + (f" and {share} GPU" if share else "")
    return (
        f"scale.workers: not one trial of {counted(workers, 'worker')} with {each} each fits: {where} {had}; "
        "lower scale.workers, scale.cpus_per_worker or scale.gpus_per_worker"
    )
