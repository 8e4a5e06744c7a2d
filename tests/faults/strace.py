"""Faults of system calls, which strace(1) injects into a process that runs already."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

CHANGES = (
    *("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "mkdirat", "renameat2", "linkat", "unlinkat"),
    *("?mkdir", "?rename", "?renameat", "?link", "?unlink", "?rmdir"),
)
"""The calls by which a program changes what is on a disk; ? where not every processor has one."""


@contextmanager
def injected(pid: int, calls: str, fault: str) -> Iterator[None]:
    """While the context lasts, these calls of a process and its threads meet a fault, such as `signal=KILL:when=3`."""
    what = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
    with _attached(pid, "-o", "/dev/null", *what):
        yield


@contextmanager
def recorded(pid: int, calls: str, into: Path) -> Iterator[None]:
    """While the context lasts, these calls of a process and its threads are written down, with the paths of files."""
    with _attached(pid, "-y", "-s", "1000", "-o", str(into), "-e", f"trace={calls}"):
        yield


@contextmanager
def _attached(pid: int, *options: str) -> Iterator[None]:
    command = ["strace", "-f", "-p", str(pid), *options]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert strace.stderr
    try:
        said = strace.stderr.readline()
        if "Operation not permitted" in said:
            pytest.skip("no process may be traced here")
        assert "attached" in said, said
        yield
    finally:
        strace.terminate()
        strace.communicate(timeout=60)
