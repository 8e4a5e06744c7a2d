"""A copy of a tile store on a node's own disk."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from shutil import copyfile, disk_usage, rmtree

from trainer.errors import RunError
from trainer.tiles.atomic import new_directory
from trainer.tiles.store import TileStore, verify


def stage(store: TileStore, folder: Path) -> TileStore:
    """A verified copy of a store in `folder`, made by the first of a node's workers that asks; the others wait.

    It lies in a folder of this user's own, so that nobody else can put another there, or hold the lock.

    Raises:
        RunError: where there is no room, or the copy is not what the store is.
    """
    own = folder / f"tissuegrid-{os.getuid()}"
    copy = own / f"store-{store.fingerprint[:16]}"
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = own.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise RunError(f"data.stage: {own} can be written by others; remove it, or name another folder")
        with (own / f".{copy.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(copy, store):  # where the system clears up, files go one by one
                rmtree(copy, ignore_errors=True)
                _copy(store, copy)
    except OSError as error:
        raise RunError(f"data.stage: {folder}: {error.strerror}; name another folder on the node's own disk") from None
    return TileStore.open(copy)


def _is_whole(copy: Path, store: TileStore) -> bool:
    return _sizes(copy) == _sizes(store.path)


def _sizes(folder: Path) -> dict[str, int]:
    """Of each file in it, by name; of none where it is not there."""
    return {file.name: file.stat().st_size for file in folder.glob("*") if file.is_file()}


def _copy(store: TileStore, copy: Path) -> None:
    sizes = _sizes(store.path)
    needed, free = sum(sizes.values()), disk_usage(copy.parent).free
    if needed > free:
        raise RunError(
            f"data.stage: {copy.parent} has {free / 1e9:,.1f} GB free, and {store.path} takes {needed / 1e9:,.1f} GB; "
            "name another folder, or train from where the store is (data.stage: null)"
        )
    with new_directory(copy) as unfinished:
        for name in sizes:
            copyfile(store.path / name, unfinished / name)
        verify(unfinished)
