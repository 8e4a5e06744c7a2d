"""Checks of the folder in which runs are kept: what it can do, how fast, and how much room there is."""

from __future__ import annotations

import errno
import getpass
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor.finding import Amount, Finding, failed, passed, warned
from cluster.doctor.limited import problem, program

TRIES = 5
SLOW_FSYNC_S = 1.0
LEAST_BYTES, ENOUGH_BYTES = 1_000_000_000, 10_000_000_000
LEAST_FILES, ENOUGH_FILES = 100, 10_000
NEARLY = 0.9
POLL_S = 0.2
ELSEWHERE = "give --storage (and run.storage) a folder on a shared file system that you may write to"
NO_LINKS = "checkpoints need hard links there: use a file system that has them (NFS, Lustre, GPFS, ext4, xfs)"
REMEDIES = {
    errno.ENOSPC: "free space there, or give --storage (and run.storage) another folder",
    errno.EDQUOT: "your quota is used up: free space there, or ask for more",
    errno.EPERM: NO_LINKS,
    errno.EOPNOTSUPP: NO_LINKS,
}
# `quota -w -p` and `lfs quota -q`: file system, then used, soft and hard limit and grace time of kB, then of files.
QUOTA = re.compile(r"(\S*/\S*)\s+(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+")


def to_examine(folder: Path) -> Path:
    """The folder itself; the one above where it is yet to be made."""
    folder = folder.absolute()
    return folder if folder.exists() else folder.parent


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A folder for trials; it is removed at the end."""
    path = folder / f".tissuegrid-doctor-{name}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def operations(folder: Path, name: str) -> Finding:
    """What a checkpoint's commit needs: fsync, rename, and exclusive create by a hard link."""
    if not folder.is_dir():
        return failed("storage", ELSEWHERE, f"{folder} is not there")
    try:
        with scratch(folder, name) as place:
            fsync = _median(lambda number: _write(place / f"synced-{number}"))
            rename = _median(lambda number: (place / f"synced-{number}").rename(place / f"renamed-{number}"))
            link = _median(lambda number: (place / f"linked-{number}").hardlink_to(place / f"renamed-{number}"))
            exclusive = _refuses_second_link(place)
    except OSError as error:
        return failed("storage", REMEDIES.get(error.errno or 0, ELSEWHERE), problem(error))
    if not exclusive:
        return failed("storage", ELSEWHERE, f"{folder}: exclusive create replaces what is there")
    times = ("rename ", Amount(rename, "s"), ", exclusive create ", Amount(link, "s"), ", fsync ", Amount(fsync, "s"))
    if fsync > SLOW_FSYNC_S:
        remedy = "each checkpoint waits for it: use a faster file system, or lengthen loop.checkpoint_every"
        return warned("storage", remedy, f"{folder}: slow: ", *times)
    return passed("storage", f"{folder}: ", *times)


def visible(mark: Path, content: str, limit_s: float) -> Finding:
    """Whether a file that the first node has just written is seen here."""
    deadline = time.monotonic() + limit_s
    begin = time.monotonic()
    touched = mark.with_name(f"{mark.name}-{os.getpid()}")
    while not (mark.exists() and mark.read_text() == content):
        if time.monotonic() > deadline:
            return failed("shared storage", ELSEWHERE, f"{mark.parent}: what the first node writes is not seen here")
        time.sleep(POLL_S)
        # On a network file system a client believes its memory of a folder until it changes it itself.
        if mark.parent.is_dir():
            touched.touch()
            touched.unlink()
    return passed("shared storage", "the first node's file is seen after ", Amount(time.monotonic() - begin, "s"))


def space(folder: Path) -> Finding:
    """Room for checkpoints, in bytes and in files."""
    status = os.statvfs(folder)
    free, files = status.f_bavail * status.f_frsize, status.f_favail
    counted: tuple[str | Amount, ...] = (" and ", Amount(files), " files") if status.f_files else ()
    found = (f"{folder}: room for ", Amount(free, "B"), *counted)
    remedy = "free space there, or give --storage (and run.storage) another folder"
    if free < LEAST_BYTES or (counted and files < LEAST_FILES):
        return failed("space", remedy, *found)
    if free < ENOUGH_BYTES or (counted and files < ENOUGH_FILES):
        return warned("space", remedy, *found)
    return passed("space", *found)


@dataclass(frozen=True)
class Quota:
    """What this user has used of a limit; 0 is no limit."""

    place: str
    what: str
    used: int
    limit: int


def quota(folder: Path, limit_s: float) -> list[Finding]:
    """The user's quota, where the system has a command that tells; else nothing."""
    commands = (["lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)], ["quota", "-w", "-p"])
    answers = [program(command, limit_s / 2).text for command in commands if shutil.which(command[0])]
    limited = [one for answer in answers for one in parse_quota(answer) if one.limit]
    return [judge_quota(one) for one in limited]


def parse_quota(text: str) -> list[Quota]:
    """The limits that `lfs quota -q` or `quota -w -p` prints, soft ones before hard ones."""
    found = []
    for place, kb, soft_kb, hard_kb, files, soft_files, hard_files in QUOTA.findall(text):
        found.append(Quota(place, "kB", int(kb), int(soft_kb) or int(hard_kb)))
        found.append(Quota(place, "files", int(files), int(soft_files) or int(hard_files)))
    return found


def judge_quota(quota: Quota) -> Finding:
    """Whether there is room under a limit."""
    found = f"{quota.place}: {quota.used:,} of {quota.limit:,} {quota.what} used"
    remedy = "free space there, or ask for more"
    if quota.used >= quota.limit:
        return failed("quota", remedy, found)
    return warned("quota", remedy, found) if quota.used >= NEARLY * quota.limit else passed("quota", found)


def _median(act: Callable[[int], object]) -> float:
    """Seconds that something takes."""
    times = []
    for number in range(TRIES):
        begin = time.perf_counter()
        act(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _write(file: Path) -> None:
    """A small file, durable, and its name too."""
    with file.open("wb") as stream:
        stream.write(bytes(4096))
        stream.flush()
        os.fsync(stream.fileno())
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuses_second_link(place: Path) -> bool:
    try:
        (place / "linked-0").hardlink_to(place / "renamed-1")
    except FileExistsError:
        return True
    return False
