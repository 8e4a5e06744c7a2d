"""SIGKILL at every system call by which checkpoints are written, claimed and removed."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path

import pytest
import torch

from tests.faults.ledger import Fault
from tests.faults.strace import CHANGES, injected, needs_strace, recorded
from trainer.checkpoint import (
    MANIFEST,
    STATE,
    TENSORS,
    best_checkpoint,
    commit,
    find_flaw,
    listed,
    newest_good,
    prune,
    write_history,
)
from trainer.rundir import Json, RunDir

pytestmark = needs_strace
METRIC = "val/accuracy"
VALUES = (0.9, 0.5, 0.6, 0.7, 0.8, 0.4, 0.3, 0.2)
"""After each step: the first is the best."""
PRUNING_KILLS = 20


def save(run: RunDir, step: int, attempt: int = 1, keep: int = 3) -> None:
    """What a worker does at a step that is saved."""
    tensors = {"fc.weight": torch.full((64, 64), float(step)), "fc.bias": torch.zeros(64)}
    commit(run, step, attempt, tensors, {"position": {"step": step}}, {"epoch": step})
    write_history(run, [record(step) for step in range(1, step + 1)], METRIC)
    prune(run, keep)


def record(step: int) -> Json:
    return {"epoch": step, "step": step, "attempt": 1, METRIC: VALUES[step - 1]}


def go_on(run: RunDir) -> None:
    """A new attempt saves its first step over those of an earlier one, of which one is removed."""
    run.claim_attempt(2, {"resumed_step": 3})
    save(run, step=4, attempt=2)


def prune_all(run: RunDir) -> None:
    prune(run, keep=2)


def begun(path: Path, steps: int, keep: int) -> RunDir:
    run = RunDir(path)
    run.path.mkdir(parents=True)
    run.claim_attempt(1, {"resumed_step": 0})
    for step in range(1, steps + 1):
        save(run, step, keep=keep)
    return run


def when_told(told: Connection, act: Callable[[RunDir], None], run: RunDir) -> None:
    told.send("ready")
    told.recv()
    act(run)


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    """Processes that need not import torch again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


Forks = multiprocessing.context.ForkServerContext


@contextmanager
def begun_process(forks: Forks, act: Callable[[RunDir], None], run: RunDir) -> Iterator[tuple[Process, Connection]]:
    """A process that acts once it is told to."""
    tell, told = forks.Pipe()
    process = forks.Process(target=when_told, args=(told, act, run))
    process.start()
    tell.recv()
    yield process, tell
    process.join(timeout=60)


def killed(forks: Forks, act: Callable[[RunDir], None], run: RunDir, call: str, time: int) -> bool:
    """Has a process act that is killed as it begins such a call for the so many-th time; False where it never does."""
    with begun_process(forks, act, run) as (process, tell):
        assert process.pid
        with injected(process.pid, call, f"signal=KILL:when={time}"):
            tell.send(None)
            process.join(timeout=60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def killed_everywhere(forks: Forks, act: Callable[[RunDir], None], before: RunDir) -> Iterator[RunDir]:
    """Copies of a run, in each of which a process that acted was killed at another call that changes the disk."""
    run = RunDir(before.path.with_name("run"))
    for call in CHANGES:
        for time in count(1):
            shutil.copytree(before.path, run.path)
            was_killed = killed(forks, act, run, call, time)
            if was_killed:
                yield run
            shutil.rmtree(run.path)
            if not was_killed:
                break


def check_whole(run: RunDir) -> int:
    """The newest step of a run in which nothing is damaged, and the best one is there."""
    newest, said = newest_good(run)
    assert newest
    assert not said
    assert not [flaw for checkpoint in listed(run) if (flaw := find_flaw(checkpoint))]
    assert best_checkpoint(run).step == 1
    return newest.step


def litter(run: RunDir) -> list[Path]:
    return [path for path in run.checkpoints_dir.iterdir() if path.name.startswith(".")]


SYNCED = re.compile(r"fsync\(\d+<(?P<path>[^>]+)>\)")
RENAMED = re.compile(r'rename\w*\((?:\S+, )?"(?P<old>[^"]+)", (?:\S+, )?"(?P<new>[^"]+)"')


@pytest.mark.fault(
    6, "every fsync and rename of a commit, recorded", "what is renamed is synced before, and its folder after"
)
def test_a_commit_is_durable_in_order(fault: Fault, forks: Forks, tmp_path: Path) -> None:
    """A kill loses nothing that the system has been given; a loss of power does, and this order is what helps."""
    run = begun(tmp_path / "run", steps=1, keep=9)
    with begun_process(forks, partial(save, step=2, keep=9), run) as (process, tell):
        assert process.pid
        with recorded(process.pid, "fsync,?rename,?renameat,?renameat2", tmp_path / "calls"):
            tell.send(None)
            process.join(timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    synced = [(n, Path(found["path"])) for n, call in enumerate(calls) if (found := SYNCED.search(call))]
    renamed = [(n, Path(f["old"]), Path(f["new"])) for n, call in enumerate(calls) if (f := RENAMED.search(call))]
    names = [new.name for _, _, new in renamed]
    assert names == [TENSORS, STATE, MANIFEST, "step-00000002-a0001", "metrics.jsonl", "best.json"]
    for place, old, new in renamed:
        assert any(path == old and n < place for n, path in synced), f"{old} is not synced before"
        assert any(path == new.parent and n > place for n, path in synced), f"{new.parent} is not synced after"
    fault.times, fault.figure = len(renamed), f"{len(renamed)} renames, {len(synced)} syncs, in order"


@pytest.mark.slow
@pytest.mark.fault(
    6,
    "SIGKILL at each system call that writes, syncs, renames or removes while a checkpoint is claimed, committed over "
    "older ones, and these are pruned",
    "the old or the new checkpoint, whole; the next start goes on and clears up",
)
def test_killed_at_any_call_of_a_commit_the_old_or_the_new_checkpoint_is_there(
    fault: Fault, forks: Forks, tmp_path: Path
) -> None:
    before = begun(tmp_path / "before", steps=3, keep=3)
    newest = []
    for run in killed_everywhere(forks, go_on, before):
        fault.times += 1
        newest.append(check_whole(run))
        assert [line["step"] for line in run.read_metrics()] in ([1, 2, 3], [1, 2, 3, 4])
        attempt = run.newest_attempt() + 1
        assert run.claim_attempt(attempt, {"resumed_step": newest[-1]})
        save(run, newest[-1] + 1, attempt)
        assert check_whole(run) == newest[-1] + 1
        assert len(listed(run)) == 3
        assert not litter(run)
    assert set(newest) == {3, 4}
    fault.figure = f"the old one {newest.count(3)} times, the new one {newest.count(4)} times, neither 0 times"


@pytest.mark.fault(18, "SIGKILL in the middle of pruning", "the best and the newest checkpoint survive")
def test_killed_while_it_prunes_best_and_newest_survive(fault: Fault, forks: Forks, tmp_path: Path) -> None:
    steps = len(VALUES)
    before = begun(tmp_path / "before", steps=steps, keep=steps)
    left = []
    for run in killed_everywhere(forks, prune_all, before):
        fault.times += 1
        assert check_whole(run) == steps
        left.append(len(listed(run)))
        assert run.claim_attempt(2, {"resumed_step": steps})
        prune_all(run)
        assert [checkpoint.step for checkpoint in listed(run)] == [steps, 1]
        assert not litter(run)
    assert fault.times >= PRUNING_KILLS
    fault.figure = f"both there {fault.times} of {fault.times} times, with {min(left)}-{max(left)} checkpoints in all"
