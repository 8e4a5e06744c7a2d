"""Ray, as this project runs it: the command lines of its nodes, and a program's way into a cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from cluster.allocation import Allocation
from cluster.head import HeadLostError, HeadWatch
from cluster.private import environment, private_directory, umask, write_token
from cluster.processes import STOP_SIGNALS, kill_all_with

T = TypeVar("T")

# For Ray's processes, which inherit this one's environment; none of these replaces what is set already.
ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Pages of metrics answer anybody. Each node's agent serves one unless nothing is collected; the dashboard's and the
    # autoscaler's are on ports that all of a node's jobs would share, and there is no such port.
    "RAY_enable_metrics_collection": "false",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
    # A group of workers that has failed is killed. By default it is first given half a minute to take leave in order,
    # which one that hangs never does.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    # A training step allocates and frees the same memory again and again. By default glibc gives it back to the system
    # each time, most of all in threads other than the main one, and page faults take a third of the step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**3),
}
OBJECT_STORE_BYTES = 100 * 1024**2  # nothing large goes through it: tiles are read from the mapped store


def ray_environment() -> dict[str, str]:
    """The variables above that are not set already."""
    return {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}


def authentication(token_file: Path) -> dict[str, str | None]:
    """Variables that turn Ray's token authentication on, with the token in this file and no other."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_AUTH_TOKEN": None}


def head_argv(allocation: Allocation, address: str, directory: Path, client_port: int) -> list[str]:
    """The command that starts Ray's head and this node of it, and stays while they run."""
    # Every port is a free one, so that several jobs can share a node; 0 asks for that, but not for the client's.
    head = ["--head", "--port=0", "--include-dashboard=false", f"--ray-client-server-port={client_port}"]
    return [*_ray_start(), *head, *_node_flags(allocation, address, directory)]


def node_argv(allocation: Allocation, head: str, address: str, directory: Path) -> list[str]:
    """The command that joins this node to the head at `head` (host:port), and stays while it runs."""
    return [*_ray_start(), f"--address={head}", *_node_flags(allocation, address, directory)]


def _ray_start() -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--log-color=false"]


def _node_flags(allocation: Allocation, address: str, directory: Path) -> list[str]:
    memory = [] if allocation.memory is None else [f"--memory={allocation.memory}"]
    return [
        f"--node-ip-address={address}",
        f"--node-name={allocation.node}",
        f"--num-cpus={allocation.cpus}",
        f"--num-gpus={allocation.gpus}",
        *memory,
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--temp-dir={directory}",
        "--disable-usage-stats",
    ]


@dataclass(frozen=True)
class Resources:
    """What a cluster has: the cores and GPUs of each node."""

    each: tuple[tuple[int, int], ...]


@contextmanager
def join() -> Iterator[Resources | None]:
    """Joins the cluster that `RAY_ADDRESS` names for as long as the context lasts; None where it names none."""
    with environment(missing := ray_environment()):
        if address := os.environ.get("RAY_ADDRESS"):
            # The cluster may have been started by others, without our variables.
            with _session(address=address, runtime_env={"env_vars": missing}):
                yield _resources()
        else:
            yield None


@contextmanager
def connect(cpus: int, gpus: int) -> Iterator[HeadWatch]:
    """Connects this process to Ray: to the cluster that it has joined, else to one of its own with these resources.

    That one is authenticated by a token of its own, has its files in a private directory and no dashboard, and ends
    with the context, which tells whether the head is there.
    """
    if os.environ.get("RAY_ADDRESS"):
        with _watched() as head:
            yield head
        return
    with environment(ray_environment()), _private(cpus, gpus), _watched() as head:
        yield head


@contextmanager
def _watched() -> Iterator[HeadWatch]:
    """Watches the head that this process is connected to; its loss ends the program, without a way back.

    Ray, shut down without its head, may crash this process instead, or end it without a word. Its other processes end
    with this one, and private directories are removed by one that waits for that.
    """
    import ray

    try:
        yield HeadWatch(ray.get_runtime_context().gcs_address)
    except HeadLostError as lost:
        Console(stderr=True).show_cursor()  # which a display of progress hides
        print(f"error: {lost}", file=sys.stderr, flush=True)
        os._exit(1)


def on_a_gpu(ask: Callable[[], T], limit_s: float) -> T:
    """What a function answers on a node with a GPU of the cluster that this process has joined.

    Raises:
        TimeoutError: where none comes free.
    """
    import ray

    answer: T = ray.get(ray.remote(num_cpus=0, num_gpus=1)(ask).remote(), timeout=limit_s)
    return answer


def _resources() -> Resources:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A head without cores may be there for others to work.
    return Resources(tuple((int(node["CPU"]), int(node.get("GPU", 0))) for node in nodes if "CPU" in node))


@contextmanager
def _private(cpus: int, gpus: int) -> Iterator[None]:
    options = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    # Ray opens its own directory to everybody, whatever the umask: so it gets one inside ours.
    with private_directory() as directory, _token(directory), _session(**options, _temp_dir=str(directory / "ray")):
        yield


@contextmanager
def _token(directory: Path) -> Iterator[None]:
    """Ray's token authentication, on, with a token that only this process and its children can read.

    By the path of the token all that Ray has started is known again at the end. One of its processes may hang in its
    own exit, with nobody left to end it.
    """
    file = directory / "token"
    write_token(file)
    try:
        with environment(authentication(file)):
            yield
    finally:
        kill_all_with("RAY_AUTH_TOKEN_PATH", str(file))


@contextmanager
def _session(**options: Any) -> Iterator[None]:
    import ray

    with _stop_signals_kept(), umask(0o077):
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _stop_signals_kept() -> Iterator[None]:
    """Holds back requests to stop, and keeps their handlers, which Ray replaces; processes started meanwhile get none.

    A terminal, a batch system or `timeout` signals the whole process group. Ray's processes must outlive that, so
    that the program can end its work in order, and then end them.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
