"""On what a run trains: the machine, or the nodes of a cluster, and how many workers share it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import ScaleSection
from trainer.errors import UsageError
from trainer.wording import counted

CPU_WORKERS = 2
DRIVER = Path("/proc/driver/nvidia/version")
NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which no GPU was granted."""


def gpu_has_bf16() -> bool:
    """Whether the GPU that this process sees, if it sees one, computes in bf16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass(frozen=True)
class Machine:
    """What there is: the cores and GPUs of each node, and how to know whether those compute in bf16."""

    each: tuple[tuple[int, int], ...]
    cluster: bool
    gpus_have_bf16: Callable[[], bool] = gpu_has_bf16

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.each)

    @property
    def gpus(self) -> int:
        """Those of all nodes together."""
        return sum(gpus for _, gpus in self.each)

    def places(self, gpus_each: float, cores_each: int) -> int:
        """Workers that fit. A worker's fraction of a GPU is of one, its whole GPUs and its cores are of one node."""
        return sum(min(cores // cores_each, _on_gpus(gpus, gpus_each, cores)) for cores, gpus in self.each)


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
        fewest = f"{self.least} to " if self.least < self.workers else ""
        workers = counted(self.workers, "GPU worker" if self.gpu else "CPU worker")
        each = " each" if self.workers > 1 else ""
        return f"{fewest}{workers} of {counted(self.threads, 'thread')}{each}"


def this_machine() -> Machine:
    """The cores that this process may use, and the GPUs that torch sees."""
    here = (len(os.sched_getaffinity(0)), torch.cuda.device_count())
    return Machine((here,), cluster=False)


def unseen_gpus() -> str:
    """What to say where torch should see a GPU and does not."""
    driver = DRIVER.read_text().splitlines()[0] if DRIVER.exists() else "no NVIDIA driver is loaded"
    return (
        f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU ({driver}); check the "
        "driver with nvidia-smi (it must be one for this CUDA), or set scale.gpu: false"
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
    threads = threads_each(asked, machine, asked.gpus_per_worker if gpu else 0, workers)
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
    if not gpu:
        workers = max(CPU_WORKERS, machine.nodes)
    else:
        workers = max(1, sum(int(gpus // max(1, asked.gpus_per_worker)) for _, gpus in machine.each))
    return workers, workers


def threads_each(asked: ScaleSection, machine: Machine, gpus_each: float, workers: int) -> int:
    """Cores of a worker: what was asked for, else an even share of all that leaves each its place on a node."""
    if asked.cpus_per_worker != "auto":
        return asked.cpus_per_worker
    threads = max(1, sum(cores for cores, _ in machine.each) // workers)
    while threads > 1 and machine.places(gpus_each, threads) < workers:
        threads -= 1
    return threads


def _on_gpus(gpus: int, gpus_each: float, without: int) -> int:
    """Workers that a node's GPUs are enough for; where they need none, as many as `without`."""
    if gpus_each == 0:
        return without
    return gpus * math.floor(1 / gpus_each + 1e-9) if gpus_each < 1 else gpus // int(gpus_each)


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
    gpus_each = scale.gpus_per_worker if scale.gpu else 0
    if machine.cluster and scale.least > machine.places(gpus_each, scale.threads):
        each = ", ".join(f"{cores} cores and {gpus} GPUs" for cores, gpus in sorted(set(machine.each)))
        wanted = f"{scale.threads} cores" + (f" and {gpus_each} GPUs" if gpus_each else "")
        raise UsageError(
            f"scale.workers: {scale.least} workers of {wanted} "
            f"do not fit: the {machine.nodes} nodes of the cluster have {each}; lower scale.workers, "
            "scale.cpus_per_worker or scale.gpus_per_worker"
        )


def _check_cores(scale: Scale, machine: Machine) -> None:
    """Refuses threads that would take each other's cores. Workers of one thread may: they only take turns."""
    needed = scale.workers * scale.threads
    if scale.threads > 1 and needed > machine.each[0][0]:
        raise UsageError(
            f"scale.cpus_per_worker: {scale.workers} workers of {scale.threads} cores need {needed}, and this process "
            f"may use {machine.each[0][0]}; lower scale.cpus_per_worker (auto: an even share) or scale.workers"
        )
