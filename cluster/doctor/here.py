"""The checks that every node makes of itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from cluster.addresses import address_towards
from cluster.allocation import Allocation
from cluster.doctor import all_reduce, compare, gpus, programs, storage, system
from cluster.doctor.finding import Finding, failed
from cluster.doctor.limited import Check, look
from cluster.private import PARENT, PREFIX

FILES_S, PROGRAM_S = 30.0, 180.0


@dataclass(frozen=True)
class Task:
    """What the first node gives all to look at: the storage, a file in it (empty: none), the files of each store."""

    storage: str
    mark: str
    content: str
    stores: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Answer:
    """What a node has found; `versions` is empty and `gpus`, those to use, 0 where they could not be told."""

    findings: list[Finding]
    versions: dict[str, str]
    gpus: int


def examine(allocation: Allocation, granted: int | None, task: Task) -> Answer:
    """All checks of this node, at once, each within its limit; `granted` GPUs (None: nobody has said how many)."""
    versions: dict[str, str] = {}
    seen: list[gpus.Seen] = []

    def note_versions() -> list[Finding]:
        versions.update(compare.versions())
        return []

    def count_gpus() -> list[Finding]:
        answer = gpus.ask(PROGRAM_S)
        if isinstance(answer, str):
            return [failed("GPUs", "make .venv, and start with its Python; look at nvidia-smi", answer)]
        seen.append(answer)
        return [gpus.judge(granted, answer)]

    findings = look(
        [
            Check("versions", FILES_S, "the folder with the packages does not answer: look at it", note_versions),
            Check("GPUs", PROGRAM_S + 5, "look at nvidia-smi on that node", count_gpus),
            *_storage_checks(allocation, task),
            *_system_checks(allocation),
        ]
    )
    count = len(seen[0].devices) if seen else 0
    return Answer(findings, versions, count if granted is None else min(count, granted))


def reduce(allocation: Allocation, group: all_reduce.Group, first_rank: int, ranks: int) -> list[Finding]:
    """This node's ranks of the group, each in a process of its own."""
    address = address_towards(allocation.peer)
    interface = next(
        (name for name, has in psutil.net_if_addrs().items() if address in (one.address for one in has)), ""
    )

    def run(device: int) -> list[Finding]:
        outcome = all_reduce.run_rank(group, first_rank + device, device)
        return [all_reduce.judge(group, outcome, interface)]

    remedy = "look at that node: it does not start programs"
    return look([Check("all-reduce", group.end_s + 10, remedy, partial(run, device)) for device in range(ranks)])


def _storage_checks(allocation: Allocation, task: Task) -> list[Check]:
    folder, remedy = Path(task.storage), storage.ELSEWHERE
    name = f"{allocation.start}-{allocation.rank}"
    checks = [
        Check("storage", FILES_S, remedy, lambda: [storage.operations(folder, name)]),
        Check("space", FILES_S, remedy, lambda: [storage.space(folder)]),
    ]
    if allocation.rank == 0:
        checks.append(Check("quota", FILES_S, "ask the site", lambda: storage.quota(folder, FILES_S / 2)))
    elif task.mark:
        mark = Path(task.mark)
        checks.append(
            Check("shared storage", FILES_S, remedy, lambda: [storage.visible(mark, task.content, FILES_S / 2)])
        )
    if allocation.rank != 0:
        checks += [_store_check(Path(path), files) for path, files in task.stores.items() if files]
    return checks


def _store_check(path: Path, files: dict[str, int]) -> Check:
    return Check("store", FILES_S, programs.SEEN_BY_ALL, lambda: [programs.same_store(path, files)])


def _system_checks(allocation: Allocation) -> list[Check]:
    directory = PARENT / f"{PREFIX}{allocation.number}-01234567"
    remedy = "look at that node, or ask the site"
    looks: dict[str, Callable[[], Finding]] = {
        "processes": system.processes,
        "locked memory": system.locked_memory,
        "shared memory": system.shared_memory,
        "temporary path": lambda: system.temporary_path(directory),
        "port": lambda: system.port(address_towards(allocation.peer)),
        "token": lambda: system.token(os.environ, Path.home()),
    }
    return [Check(name, FILES_S, remedy, _one(act)) for name, act in looks.items()]


def _one(act: Callable[[], Finding]) -> Callable[[], list[Finding]]:
    return lambda: [act()]
