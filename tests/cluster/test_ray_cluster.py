"""The private Ray: nobody else's, and gone afterwards."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.ray_cluster import connect


def directories() -> set[Path]:
    return set(Path("/tmp").glob("tg-*"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_ray_is_private_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "before")
    others = directories()
    umask = os.umask(0o022)
    try:
        with connect(cpus=1, gpus=0):
            import ray

            (directory,) = directories() - others
            assert mode(directory) == 0o700
            assert mode(directory / "token") == 0o600
            assert (directory / "ray").is_dir()
            assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)
    ours = {key: value for key, value in os.environ.items() if key.startswith(("RAY_AUTH", "MALLOC_"))}
    assert ours == {"RAY_AUTH_TOKEN": "before"}
    assert not directories() - others
