"""Child processes that end with this one, whatever becomes of either."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)
STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})


def adopt_orphans() -> None:
    """From now on, a process whose parent ends becomes this one's child, and so stays in sight."""
    if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def end_with_parent() -> None:
    """From now on, this process is killed when the one that started it dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(
    argv: Sequence[str], environment: Mapping[str, str], output: Path | None = None, *, shielded: bool = False
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own; it is killed when this process dies.

    Args:
        argv: the program and its arguments.
        environment: all of its environment.
        output: file for what it prints; None: where this process prints.
        shielded: it and all that it starts never see requests to stop (some systems signal every process of a job),
            and create files for this user alone.
    """

    def prepare() -> None:
        end_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS if shielded else [])

    stream = None if output is None else output.open("ab")
    try:
        return subprocess.Popen(
            list(argv),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            umask=0o077 if shielded else -1,
            preexec_fn=prepare,
        )
    finally:
        if stream is not None:
            stream.close()


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Asks a program to end, and kills it where it has not after `grace_s`."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_all(limit_s: float = 10.0) -> list[int]:
    """Kills all that this process has started and all that those have started; the pids that are left after `limit_s`.

    Needs `adopt_orphans` from the beginning, or those whose parents have ended are not found.
    """
    deadline = time.monotonic() + limit_s
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()
        if time.monotonic() > deadline:
            return [process.pid for process in left]
        time.sleep(0.05)
    return []


def kill_all_with(variable: str, value: str) -> None:
    """Kills all other processes of this user that were started with this value in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                process.kill()


def _reap() -> None:
    """Takes leave of ended children, so that they do not stay as zombies."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
