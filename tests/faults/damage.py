"""Ways in which a file comes to harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def truncate(file: Path) -> None:
    """As after a crash of a file system without journal."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def delete(file: Path) -> None:
    file.unlink()


KINDS: tuple[Callable[[Path], None], ...] = (truncate, empty, delete)


@contextmanager
def restored(file: Path) -> Iterator[None]:
    """The file is at the end as it was before; it may not be there meanwhile."""
    content = file.read_bytes()
    try:
        yield
    finally:
        file.write_bytes(content)


def flip_a_bit(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
