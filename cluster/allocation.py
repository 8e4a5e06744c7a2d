"""What the scheduler has given, read from the environment. The only reader of Slurm's variables."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which no GPU was granted."""
LOOPBACK = "127.0.0.1"
ONE_A_NODE = "srun --ntasks-per-node=1 python -m cluster ..."


def nodes_counted(number: int) -> str:
    """In words."""
    return "1 node" if number == 1 else f"{number} nodes"


class AllocationError(Exception):
    """The environment does not describe an allocation that a cluster can be made of."""


@dataclass(frozen=True)
class Allocation:
    """This node's part of an allocation, as the task that runs on it sees it."""

    job: str
    """The job's name, which it keeps when it is requeued."""
    step: str
    """Which of the job's steps this is."""
    restarts: int
    """How often the job has been requeued."""
    rank: int
    """This node's number; node 0 is the head."""
    nodes: int
    node: str
    cpus: int
    gpus: int
    memory: int | None
    """Bytes; None where the scheduler does not limit memory."""
    peer: str
    """An address in the network that connects the nodes."""
    pretended: bool = False
    """Whether no scheduler has given it, and none would requeue it."""

    @property
    def start(self) -> str:
        """Names this start of the job: no other start, step or job has the same, on no node."""
        return f"{self.job}-{self.step}-{self.restarts}"

    @property
    def earlier_starts(self) -> list[str]:
        """The names of those before the last requeue."""
        return [replace(self, restarts=number).start for number in range(self.restarts)]

    @property
    def number(self) -> str:
        """The job's short name on its own node, for paths: Slurm's number of it."""
        return self.job.rsplit("-", 1)[-1]


def from_slurm(environment: Mapping[str, str]) -> Allocation | None:
    """The allocation of a task that `srun` started; None outside of Slurm.

    Raises:
        AllocationError: where srun started another number of tasks than one a node, or a variable is missing.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    try:
        return _task(environment)
    except KeyError as missing:
        problem = f"inside a Slurm job, and {missing.args[0]} is not set; srun sets it: {ONE_A_NODE}"
        raise AllocationError(problem) from None


def _task(environment: Mapping[str, str]) -> Allocation:
    if "SLURM_PROCID" not in environment:
        raise AllocationError(f"inside a Slurm job, and not started by srun; start one task a node: {ONE_A_NODE}")
    nodes, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if tasks != nodes:
        raise AllocationError(f"srun started {tasks} tasks on {nodes} nodes; start one a node: --ntasks-per-node=1")
    cpus = int(environment.get("SLURM_CPUS_PER_TASK") or environment["SLURM_CPUS_ON_NODE"])
    # Several clusters may share storage, and number their jobs alike.
    job = f"{environment['SLURM_CLUSTER_NAME']}-{environment['SLURM_JOB_ID']}"
    gpus = _gpus(environment)
    return Allocation(
        job=job,
        step=environment["SLURM_STEP_ID"],
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        rank=int(environment["SLURM_PROCID"]),
        nodes=nodes,
        node=environment["SLURMD_NODENAME"],
        cpus=cpus,
        gpus=gpus,
        memory=_memory(environment, cpus, gpus),
        peer=environment["SLURM_LAUNCH_NODE_IPADDR"],
    )


def local(job: str, rank: int, nodes: int) -> Allocation:
    """One of several pretended nodes on this machine, each with an equal share of its cores and no GPU."""
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // nodes)
    return Allocation(job, "0", 0, rank, nodes, f"local{rank}", share, 0, None, LOOPBACK, pretended=True)


def this_machine() -> Allocation:
    """The machine itself, where no scheduler has given anything."""
    job, cores = f"here-{secrets.token_hex(3)}", len(os.sched_getaffinity(0))
    node, gpus = socket.gethostname(), visible_gpus(os.environ) or 0
    return Allocation(job, "0", 0, 0, 1, node, cores, gpus, None, LOOPBACK, pretended=True)


def node_names(environment: Mapping[str, str]) -> list[str]:
    """The names of the nodes on which `srun` started tasks; empty outside of Slurm."""
    return hostnames(environment.get("SLURM_STEP_NODELIST", ""))


def hostnames(nodelist: str) -> list[str]:
    """The names that Slurm abbreviates: `n[01-02,7],login` is n01, n02, n7, login."""
    names = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        head, bracket, tail = part.partition("[")
        inside, _, tail = tail.partition("]")
        numbers = [number for span in inside.split(",") for number in _span(span)] if bracket else [""]
        names += [f"{head}{number}{rest}" for number in numbers for rest in hostnames(tail) or [""]]
    return names


def _span(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]


def visible_gpus(environment: Mapping[str, str]) -> int | None:
    """How many devices CUDA_VISIBLE_DEVICES names; None where it is not set."""
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    return None if devices is None else len([one for one in devices.split(",") if one not in NO_DEVICES])


def _gpus(environment: Mapping[str, str]) -> int:
    """As counted by Slurm; by the devices that are visible where it does not count them (GPUs without --gpus...)."""
    if counted := environment.get("SLURM_GPUS_ON_NODE"):
        return int(counted)
    return visible_gpus(environment) or 0


def _memory(environment: Mapping[str, str], cpus: int, gpus: int) -> int | None:
    """Slurm counts in MiB, for the node, or for each CPU or GPU of it; 0 is the whole node."""
    shares = {"SLURM_MEM_PER_NODE": 1, "SLURM_MEM_PER_CPU": cpus, "SLURM_MEM_PER_GPU": gpus}
    given = (int(environment.get(name, "0")) * share for name, share in shares.items())
    return next(filter(None, given), 0) * 1024**2 or None
