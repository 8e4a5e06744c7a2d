"""Joins a Ray cluster, or starts a private one on this machine that ends with the program."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ray prints, copies and counts more than we want; set before it is imported, in this process and its workers.
QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 100 * 1024**2  # nothing large goes through it: tiles are read from the mapped store


@contextmanager
def connect(cpus: int, gpus: int) -> Iterator[None]:
    """Connects this process to Ray for as long as the context lasts.

    With `RAY_ADDRESS` set, to that cluster. Else to one of this process's own, with `cpus` and `gpus`: authenticated
    by a token of its own, its files in a private directory that is removed at the end, and no dashboard.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    if address := os.environ.get("RAY_ADDRESS"):
        with _session(address=address):
            yield
        return
    options = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    with _private_directory() as directory, _token(directory), _session(**options, _temp_dir=str(directory)):
        yield


@contextmanager
def _session(**options: Any) -> Iterator[None]:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A directory that only this user can enter, in which all that is created is this user's alone.

    Its name is short, because the path of a unix socket in it must stay under 107 bytes.
    """
    umask = os.umask(0o077)
    directory = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    try:
        yield directory
    finally:
        os.umask(umask)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _token(directory: Path) -> Iterator[None]:
    """Ray's token authentication, on, with a token that only this process and its children can read."""
    file = directory / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    before = {key: os.environ.get(key) for key in (*ours, "RAY_AUTH_TOKEN")}
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(ours)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
