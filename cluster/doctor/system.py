"""Checks of one node's own limits, directories, ports and token."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from cluster.addresses import free_port
from cluster.doctor.finding import Amount, Finding, failed, passed, warned
from cluster.ray_cluster import OBJECT_STORE_BYTES

LEAST_PROCESSES = 4096
LEAST_SHM = 1_000_000_000
SOCKET_BYTES = 107
# Ray's longest socket, in its temporary directory: a session named after the time and a pid of up to seven digits.
RAY_SOCKET = f"ray/session_2000-01-01_00-00-00_000000_{'0' * 7}/sockets/plasma_store"
INFINIBAND = Path("/sys/class/infiniband")


def processes(soft: float | None = None) -> Finding:
    """`ulimit -u`: Ray and torch start hundreds of threads on a large node, and each counts."""
    limit = _limit(resource.RLIMIT_NPROC) if soft is None else soft
    if limit < LEAST_PROCESSES:
        remedy = f"ulimit -u {LEAST_PROCESSES} (or more) before srun; where that is refused, ask the site"
        return warned("processes", remedy, "ulimit -u is ", Amount(limit))
    return passed("processes", "ulimit -u is ", Amount(limit))


def locked_memory(soft: float | None = None, infiniband: Path = INFINIBAND) -> Finding:
    """`ulimit -l`: InfiniBand registers memory by locking it."""
    limit = _limit(resource.RLIMIT_MEMLOCK) if soft is None else soft
    used = infiniband.is_dir() and any(infiniband.iterdir())
    amount = Amount(limit, "B")
    if used and limit != float("inf"):
        remedy = "ulimit -l unlimited before srun; where that is refused, ask the site (Slurm: PropagateResourceLimits)"
        return warned("locked memory", remedy, "there is InfiniBand, and ulimit -l is ", amount)
    return passed("locked memory", "ulimit -l is ", amount, "" if used else "; there is no InfiniBand that needs it")


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Room for Ray's object store, and for what NCCL and gloo pass between the workers of a node."""
    usage = shutil.disk_usage(path)
    found = (f"{path}: ", Amount(usage.free, "B"), " free of ", Amount(usage.total, "B"))
    remedy = f"remove your files in {path}; in a container, start it with a larger one (--shm-size, --ipc=host)"
    if usage.free < OBJECT_STORE_BYTES:
        return failed("shared memory", remedy, *found)
    if usage.free < LEAST_SHM:
        return warned("shared memory", remedy, *found)
    return passed("shared memory", *found)


def temporary_path(directory: Path) -> Finding:
    """Whether Ray's sockets fit where this job's private directory on this node would be."""
    length = len(os.fsencode(directory / RAY_SOCKET))
    found = (f"sockets under {directory.parent} have ", Amount(length), f" of {SOCKET_BYTES} bytes")
    if length > SOCKET_BYTES:
        remedy = "the path holds the names of job and node: ask the site for a shorter one of the node (NodeName)"
        return failed("temporary path", remedy, *found)
    probe = directory.with_name(f"{directory.name}-doctor")
    probe.mkdir(mode=0o700)
    probe.rmdir()
    return passed("temporary path", *found)


def port(address: str) -> Finding:
    """Whether a port can be had."""
    free_port(address)
    return passed("port", "a free one can be had")


def token(environment: Mapping[str, str], home: Path) -> Finding:
    """An own token file of Ray's, where there is one: whoever reads it may run programs as this user."""
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    if not file.exists():
        return passed("token", "no file of your own; each job makes its own token")
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        return failed(
            "token", f"chmod 600 {file}; if others use these nodes, make a new token", f"{file} is {mode:04o}"
        )
    return passed("token", f"{file} is {mode:04o}")


def _limit(which: int) -> float:
    soft, _ = resource.getrlimit(which)
    return float("inf") if soft == resource.RLIM_INFINITY else float(soft)
