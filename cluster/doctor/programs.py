"""What `python -m trainer` says of weights and stores, and whether every node sees the same stores."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.doctor.finding import Finding, failed, passed, warned
from cluster.doctor.limited import Ended, program

SLOWEST_BYTES_PER_S = 20e6
TRAINER = (sys.executable, "-m", "trainer")
SEEN_BY_ALL = "put it on a file system that all nodes see"
Listing = Mapping[str, int]


def weights(limit_s: float) -> Finding:
    """Whether the pretrained weights are in the cache. Only a warning: a run may start from a file, or from chance."""
    ended = program([*TRAINER, "fetch-weights", "--check"], limit_s)
    if ended.code == 0:
        return passed("weights", ended.last_line)
    found, _, remedy = _said(ended, limit_s).partition(". ")
    return warned("weights", remedy or "run python -m trainer fetch-weights --check there", found)


def store(path: Path, limit_s: float) -> Finding:
    """Whether a tile store is as it was packed."""
    ended = program([*TRAINER, "verify", str(path)], limit_s)
    if ended.code == 0:
        return passed("store", ended.last_line)
    return failed("store", "pack it again (python -m trainer prepare), or copy it again", _said(ended, limit_s))


def verify_limit_s(files: Listing) -> float:
    """Long enough to read a store from slow storage."""
    return 60 + sum(files.values()) / SLOWEST_BYTES_PER_S


def listing(folder: Path) -> dict[str, int]:
    """A folder's files and their sizes in bytes; empty where there is none."""
    return {file.name: file.stat().st_size for file in folder.iterdir()} if folder.is_dir() else {}


def same_store(path: Path, files: Listing) -> Finding:
    """Whether this node sees the store that the first node does."""
    here = listing(path)
    if not here:
        return failed("store", SEEN_BY_ALL, f"{path} is not seen here")
    if here != files:
        return failed("store", SEEN_BY_ALL, f"{path} is another one here")
    return passed("store", f"{path} is seen")


def _said(ended: Ended, limit_s: float) -> str:
    return f"not done in {limit_s:.0f} s" if ended.code is None else ended.last_line.removeprefix("error: ")
