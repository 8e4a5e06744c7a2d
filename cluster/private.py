"""What belongs to one program on one node: a directory nobody else can enter, and variables of its environment."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PARENT = Path("/tmp")
PREFIX = "tg-"
HELD = "held"


@contextmanager
def private_directory(name: str | None = None) -> Iterator[Path]:
    """A directory that only this user can enter, in which all that is created is this user's alone; removed at the end.

    Its path `/tmp/tg-NAME` is short, because that of a unix socket in it must stay under 107 bytes.
    """
    _remove_abandoned()
    umask = os.umask(0o077)
    directory = PARENT / f"{PREFIX}{name or secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    try:
        with _held(directory):
            yield directory
    finally:
        os.umask(umask)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, for this process and those it starts, and puts them back; None takes one away."""
    before = {key: os.environ.get(key) for key in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Marks a directory as in use, by a lock that the system drops with this process."""
    with (directory / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned() -> None:
    """Removes what this user's programs left behind when they were killed."""
    for directory in PARENT.glob(f"{PREFIX}*"):
        # Not ours, not abandoned, or gone just now: left alone.
        with suppress(OSError), (directory / HELD).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.lstat().st_uid == os.getuid():
                shutil.rmtree(directory, ignore_errors=True)


def _set(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
