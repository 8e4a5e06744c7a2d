"""A directory that appears whole or not at all."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.durable import sync
from trainer.errors import RunError, UsageError


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Yields an empty directory; when the block ends well, its files are on disk and it bears the name `final`.

    When the block fails, nothing is left. What a killed writer left is removed by the next one for the same name;
    a living one is an error: it holds a lock, which the system drops with the process.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(final), dir=final.parent))
    except OSError as error:
        raise UsageError(f"{final} cannot be made: {error.strerror} ({error.filename})") from None
    try:
        with (temporary / "lock").open("w") as lock:
            _lock(lock.fileno())
            unfinished = temporary / "directory"
            unfinished.mkdir()  # by the user's umask, which mkdtemp does not heed
            yield unfinished
            _publish(unfinished, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prefix(final: Path) -> str:
    return f".{final.name}.unfinished-"


def _remove_leftovers(final: Path) -> None:
    for leftover in sorted(final.parent.glob(f"{_prefix(final)}*")):
        lock = leftover / "lock"
        if lock.exists():
            with lock.open() as file:
                if not _lock(file.fileno()):
                    raise UsageError(
                        f"{final} is being written by another process: wait for it, or end it."
                        f" If there is none, delete {leftover}"
                    )
        shutil.rmtree(leftover)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: then nobody can tell
        return False
    return True


def _publish(unfinished: Path, final: Path) -> None:
    for file in unfinished.iterdir():
        sync(file)
    sync(unfinished)
    try:
        unfinished.rename(final)  # fails on anything but an empty directory
    except OSError as error:
        raise RunError(f"{final} appeared while it was being written: {error.strerror}") from None
    sync(final.parent)
