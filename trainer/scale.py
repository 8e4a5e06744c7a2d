"""On what a run trains: the machine, or the nodes of a cluster, and how many workers share it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from trainer.config import ScaleSection
from trainer.errors import UsageError

CPU_WORKERS = 2
NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which no GPU was granted."""


@dataclass(frozen=True)
class Machine:
    """What there is: the cores and GPUs of each node."""

    each: tuple[tuple[int, int], ...]
    cluster: bool

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.each)

    @property
    def cores(self) -> int:
        """Those of the smallest node."""
        return min(cores for cores, _ in self.each)

    @property
    def gpus(self) -> int:
        """Those of all nodes together."""
        return sum(gpus for _, gpus in self.each)


@dataclass(frozen=True)
class Scale:
    """How many workers train together, on what. Fewer than `workers`, down to `least`, go on after a loss."""

    workers: int
    least: int
    gpu: bool
    gpus_per_worker: float
    threads: int

    @property
    def gpus(self) -> int:
        """Whole GPUs that all workers together need to be given."""
        return math.ceil(self.workers * self.gpus_per_worker) if self.gpu else 0

    def __str__(self) -> str:
        count = f"{self.least} to {self.workers}" if self.least < self.workers else str(self.workers)
        kind = f"{'GPU' if self.gpu else 'CPU'} worker{'s' if self.workers > 1 else ''}"
        each = " each" if self.workers > 1 else ""
        return f"{count} {kind} of {self.threads} thread{'s' if self.threads > 1 else ''}{each}"


def this_machine() -> Machine:
    """The cores that this process may use, and the GPUs that torch sees."""
    return Machine(((len(os.sched_getaffinity(0)), torch.cuda.device_count()),), cluster=False)


def unseen_gpus() -> str:
    """What to say where torch should see a GPU and does not."""
    return (
        f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU; check the driver with "
        "nvidia-smi (it must be one for this CUDA), or set scale.gpu: false"
    )


def resolve(asked: ScaleSection, machine: Machine) -> Scale:
    """Settles what is `auto`.

    Raises:
        UsageError: where the machine has not what is asked for, or GPUs were granted and torch sees none: no reason to
            train on the CPU and say nothing.
    """
    gpu = use_gpus(asked, machine)
    least, workers = _workers(asked, machine, gpu)
    _check_sharing(asked, gpu, workers)
    share = max(1, machine.cores // math.ceil(workers / machine.nodes))
    threads = share if asked.cpus_per_worker == "auto" else asked.cpus_per_worker
    scale = Scale(workers, least, gpu, asked.gpus_per_worker, threads)
    _check_room(scale, machine)
    if asked.cpus_per_worker != "auto" and not machine.cluster:
        _check_cores(scale, machine)
    return scale


def use_gpus(asked: ScaleSection, machine: Machine) -> bool:
    """Whether to train on GPUs.

    Raises:
        UsageError: where they are asked for and not there, or were granted and torch sees none.
    """
    granted = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if asked.gpu is not False and granted not in NO_DEVICES and not torch.cuda.is_available():
        raise UsageError(f"scale.gpu: GPU {granted} was granted (CUDA_VISIBLE_DEVICES), and {unseen_gpus()}")
    gpu = machine.gpus > 0 if asked.gpu == "auto" else asked.gpu
    if gpu and not machine.gpus:
        problem = "no node of the cluster has a GPU" if machine.cluster else unseen_gpus()
        raise UsageError(f"scale.gpu: true, and {problem}")
    return gpu


def _workers(asked: ScaleSection, machine: Machine, gpu: bool) -> tuple[int, int]:
    """Fewest and most workers."""
    if isinstance(asked.workers, int):
        return asked.workers, asked.workers
    if asked.workers != "auto":
        least, most = asked.workers.split(":")
        return int(least), int(most)
    workers = max(1, int(machine.gpus // max(1, asked.gpus_per_worker))) if gpu else max(CPU_WORKERS, machine.nodes)
    return workers, workers


def _check_sharing(asked: ScaleSection, gpu: bool, workers: int) -> None:
    """Refuses workers of one run on one GPU, where NCCL would end with an error of its own."""
    if gpu and asked.gpus_per_worker < 1 < workers:
        raise UsageError(
            f"scale.gpus_per_worker: with {asked.gpus_per_worker}, several of a run's {workers} workers would share a "
            "GPU, over which they cannot talk to each other; set scale.workers: 1, or whole GPUs"
        )


def _check_room(scale: Scale, machine: Machine) -> None:
    """Refuses what would wait for ever."""
    where = f"the {machine.nodes} nodes of the cluster have" if machine.cluster else "this machine has"
    needed = scale.least * scale.gpus_per_worker
    if scale.gpu and needed > machine.gpus:
        raise UsageError(
            f"scale.workers: {scale.least} workers need {needed} GPUs, and {where} {machine.gpus}; lower scale.workers "
            "or scale.gpus_per_worker"
        )
    if machine.cluster and scale.least > machine.nodes * (machine.cores // scale.threads):
        raise UsageError(
            f"scale.workers: {scale.least} workers of {scale.threads} cores do not fit: {where} {machine.cores} cores "
            "each; lower scale.workers or scale.cpus_per_worker"
        )


def _check_cores(scale: Scale, machine: Machine) -> None:
    """Refuses threads that would take each other's cores. Workers of one thread may: they only take turns."""
    needed = scale.workers * scale.threads
    if scale.threads > 1 and needed > machine.cores:
        raise UsageError(
            f"scale.cpus_per_worker: {scale.workers} workers of {scale.threads} cores need {needed}, and this process "
            f"may use {machine.cores}; lower scale.cpus_per_worker (auto: an even share) or scale.workers"
        )
