"""What a process does to files, by the audit events of Python: all that this project writes, it writes from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOKS = ("read", "list")
"""What changes nothing."""
CHANGES = ("mkdir", "rmdir", "remove", "rename", "link", "symlink", "truncate", "utime", "chmod", "chown")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch(folder: Path, see: Callable[[str, Path], object]) -> None:
    """From now on, `see(act, path)` is called before each thing that this process does to anything in a folder.

    Python has no way back from this: it is for processes that end.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        for act, path in _acts(event, arguments):
            if path.is_relative_to(folder):
                see(act, path)

    sys.addaudithook(hook)


def _acts(event: str, arguments: tuple[Any, ...]) -> list[tuple[str, Path]]:
    """What is done to which path. Ints are descriptors, of files that were opened by a path before."""
    module, _, act = event.partition(".")
    if event == "open":
        act = "write" if arguments[2] & WRITES else "read"
    elif event in ("os.scandir", "os.listdir"):
        act = "list"
    elif event == "shutil.rmtree":
        act = "remove"
    elif module != "os" or act not in CHANGES:
        return []
    paths = arguments[:2] if act in ("rename", "link", "symlink") else arguments[:1]
    return [(act, Path(os.fsdecode(path))) for path in paths if isinstance(path, str | bytes | os.PathLike)]
