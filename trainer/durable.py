"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class WriteError(OSError):
    """A file or folder that could not be written; says which, why, how much room there is, and the remedy."""

    def __str__(self) -> str:
        return (
            f"{self.filename}: cannot be written ({self.strerror}); make room there, or see to the storage: the same "
            "command then goes on"
        )


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Where something cannot be written, says what: the system names no file where room runs out in the middle."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, f"{error.strerror}; {_room(place)}", str(place)) from None


def write_atomic(file: Path, data: bytes) -> None:
    """Replaces a file in one step: after a crash there is the old one or the new one, whole."""
    with naming(file), _written_beside(file, data) as temporary:
        temporary.replace(file)
        sync(file.parent)


def create_exclusive(file: Path, data: bytes) -> bool:
    """Creates a file with its content in one step; False where it exists. Of several processes one succeeds."""
    with naming(file), _written_beside(file, data) as temporary:
        try:
            file.hardlink_to(temporary)
        except FileExistsError:
            return False
        sync(file.parent)
        return True


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _written_beside(file: Path, data: bytes) -> Iterator[Path]:
    """Another file in the same folder, durable; it is removed at the end, unless it has got another name."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _room(place: Path) -> str:
    """How much room there is where a file is to be."""
    try:
        status = os.statvfs(place.parent)
    except OSError as error:
        return f"{place.parent}: {error.strerror}"
    return f"{status.f_bavail * status.f_frsize:,} bytes free"
