"""Joins a Ray cluster, or starts a private one on this machine that ends with the program."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# For Ray's processes, which inherit this one's environment; none of these replaces what is set already.
ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A training step allocates and frees the same memory again and again. By default glibc gives it back to the system
    # each time, most of all in threads other than the main one, and page faults take a third of the step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**3),
}
HELD = "held"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OBJECT_STORE_BYTES = 100 * 1024**2  # nothing large goes through it: tiles are read from the mapped store


@contextmanager
def connect(cpus: int, gpus: int) -> Iterator[None]:
    """Connects this process to Ray for as long as the context lasts.

    With `RAY_ADDRESS` set, to that cluster. Else to one of this process's own, with `cpus` and `gpus`: authenticated
    by a token of its own, its files in a private directory that is removed at the end, and no dashboard.
    """
    with _environment({key: value for key, value in ENVIRONMENT.items() if key not in os.environ}):
        if address := os.environ.get("RAY_ADDRESS"):
            with _session(address=address):
                yield
        else:
            with _private(cpus, gpus):
                yield


@contextmanager
def _private(cpus: int, gpus: int) -> Iterator[None]:
    options = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    # Ray opens its own directory to everybody, whatever the umask: so it gets one inside ours.
    with _private_directory() as directory, _token(directory), _session(**options, _temp_dir=str(directory / "ray")):
        yield


@contextmanager
def _session(**options: Any) -> Iterator[None]:
    import ray

    with _stop_signals_kept():
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


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A directory that only this user can enter, in which all that is created is this user's alone.

    Its name is short, because the path of a unix socket in it must stay under 107 bytes.
    """
    _remove_abandoned()
    umask = os.umask(0o077)
    directory = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    try:
        with _held(directory):
            yield directory
    finally:
        os.umask(umask)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Marks a directory as in use, by a lock that the system drops with this process."""
    with (directory / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned() -> None:
    """Removes what this user's programs left behind when they were killed."""
    for directory in Path("/tmp").glob("tg-*"):
        # Not ours, not abandoned, or gone just now: left alone.
        with suppress(OSError), (directory / HELD).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.lstat().st_uid == os.getuid():
                shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _token(directory: Path) -> Iterator[None]:
    """Ray's token authentication, on, with a token that only this process and its children can read."""
    file = directory / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": None}):
        yield


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, for this process and those it starts, and puts them back; None takes one away."""
    before = {key: os.environ.get(key) for key in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
