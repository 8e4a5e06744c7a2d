"""What belongs to one program on one node: a directory nobody else can enter, and variables of its environment."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PARENT = Path("/tmp")
PREFIX = "tg-"
HELD = "held"
SETTLED_AFTER_S = 60.0
"""A directory younger than this may be one that is just being made."""
AFTERWARDS = """
cat
for _ in $(seq 75); do  # what is being killed may still write for a while
    rm -rf "$1"
    sleep 0.2
    [ -e "$1" ] || exit 0
done
"""


@contextmanager
def private_directory(job: str = "") -> Iterator[Path]:
    """A directory that only this user can enter; removed at the end, however this process ends.

    Its path `/tmp/tg-JOB-XXXXXXXX` is short, because that of a unix socket in it must stay under 107 bytes.
    """
    _remove_abandoned()
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{job}-" if job else PREFIX, dir=PARENT))
    try:
        with _held(directory), removed_when_killed(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def write_token(file: Path) -> None:
    """Makes up a secret and writes it where nobody else can read it.

    Raises:
        FileExistsError: never is one replaced.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_hex(32))


@contextmanager
def removed_when_killed(directory: Path) -> Iterator[None]:
    """Has a process that is nobody's child wait for this one's end, and remove the directory if nobody else has."""
    argv = ["setsid", "--fork", "sh", "-c", AFTERWARDS, "sh", str(directory)]
    null = subprocess.DEVNULL
    waiting = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=null, stderr=null, env={"PATH": os.defpath})
    waiting.wait()
    assert waiting.stdin is not None
    with waiting.stdin:
        yield


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, for this process and those it starts, and puts them back; None takes one away."""
    before = {key: os.environ.get(key) for key in values}
    set_environment(values)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: Mapping[str, str | None]) -> None:
    """Sets variables, for this process and those it starts; None takes one away."""
    for key, value in values.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """What this process creates meanwhile lacks these permissions, and what processes started meanwhile create."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Marks a directory as in use, by a lock that the system drops with this process."""
    with (directory / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned() -> None:
    """Removes what this user's programs left behind when they were killed. Others' are not even opened."""
    for directory in PARENT.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = directory.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if mine and time.time() - found.st_mtime > SETTLED_AFTER_S:
                with (directory / HELD).open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
