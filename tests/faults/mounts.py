"""Storages that a test may take away: mounted in its own folder, and unmounted whatever becomes of the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def can_mount() -> bool:
    """Whether this process may: root of a container often may not."""
    try:
        answer = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return os.geteuid() == 0 and answer.returncode == 0


needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse")
needs_mounts = pytest.mark.skipif(not can_mount(), reason="only root may mount, where it may")


class Mount:
    """A storage at a place: there, read-only, or gone."""

    def __init__(self, place: Path, *how: str):
        self.place, self._how = place, how

    def back(self) -> None:
        """Mounts it."""
        subprocess.run(["mount", *self._how, self.place], check=True)

    def gone(self) -> None:
        """Takes it away from whoever uses it: what is left is the folder on which it was mounted."""
        subprocess.run(["umount", "--lazy", self.place], check=True)

    def writable(self, allowed: bool) -> None:
        """Allows writing or not, as soon as no file is open for it."""
        command = ["mount", "-o", f"remount,bind,{'rw' if allowed else 'ro'}", self.place]
        deadline = time.monotonic() + 60
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "something is always open for writing"


@contextmanager
def mounted(mount: Mount) -> Iterator[Mount]:
    """The storage, there; unmounted at the end."""
    mount.back()
    try:
        yield mount
    finally:
        while str(mount.place) in Path("/proc/self/mounts").read_text().split():
            mount.gone()


def tmpfs(place: Path, size: int) -> Mount:
    """A storage of so many bytes, in memory."""
    place.mkdir(parents=True, exist_ok=True)
    return Mount(place, "-t", "tmpfs", "-o", f"size={size}", "none")


def shown(content: Path, place: Path) -> Mount:
    """A folder as the storage at another place."""
    place.mkdir(parents=True, exist_ok=True)
    return Mount(place, "--bind", str(content))


@contextmanager
def silent(place: Path) -> Iterator[None]:
    """While the context lasts, no call at this place is answered: it is a FUSE file system that nobody serves."""
    with Path("/dev/fuse").open("r+b", buffering=0) as device:
        who = f"fd={device.fileno()},rootmode=40000,user_id=0,group_id=0"
        command = ["mount", "--internal-only", "-t", "fuse", "-o", who, "none", place]
        subprocess.run(command, check=True, pass_fds=[device.fileno()])
        try:
            yield
        finally:
            device.close()  # whoever still waits is told so
            subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def filled(place: Path, *, but: int) -> Iterator[None]:
    """While the context lasts, the storage at a place has only so many bytes left."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - but)
    try:
        yield
    finally:
        ballast.unlink()
