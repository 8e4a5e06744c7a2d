"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_atomic(file: Path, data: bytes) -> None:
    """Replaces a file in one step: after a crash there is the old one or the new one, whole."""
    temporary = _write_beside(file, data)
    temporary.replace(file)
    sync(file.parent)


def create_exclusive(file: Path, data: bytes) -> bool:
    """Creates a file with its content in one step; False where it exists. Of several processes one succeeds."""
    temporary = _write_beside(file, data)
    try:
        file.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync(file.parent)
    return True


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(file: Path, data: bytes) -> Path:
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return temporary
