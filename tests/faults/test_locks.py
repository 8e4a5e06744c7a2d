"""Locks whose holders are dead, elsewhere, or wrong about the time; and the rule that a second writer runs into."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.command import wait_until
from tests.faults.ledger import Fault
from trainer import checkpoint as ck
from trainer import lock
from trainer.errors import RunError
from trainer.lock import RunLock
from trainer.rundir import RunDir

DAY_H = 24.0
IN_NAMESPACES = ("unshare", "--uts", "--pid", "--mount-proc", "--kill-child")
needs_namespaces = pytest.mark.skipif(
    subprocess.run([*IN_NAMESPACES, "true"], capture_output=True).returncode != 0,
    reason="no namespaces may be made here",
)
QUICK_S = 0.2
"""A heartbeat for tests; the program's own is in one of them."""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@contextmanager
def held(run: RunDir, host: str | None, wrong_h: float = 0.0, heartbeat_s: float = QUICK_S) -> Iterator[int]:
    """Another process that holds a run's lock; its pid. On a host of that name, with processes of its own, if given."""
    command = [sys.executable, "-m", "tests.faults.holder", str(run.path), str(wrong_h), str(heartbeat_s)]
    if host is not None:
        inside = 'hostname "$0" && exec "$@"'
        command = [*IN_NAMESPACES, "sh", "-c", inside, host, *command]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: run.lock_file.exists() and beats(run) > 0, "the other's first heartbeat")
        yield process.pid if host is None else child_of(process.pid)
    finally:
        process.kill()
        process.wait()


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def beats(run: RunDir) -> int:
    return int(json.loads(run.lock_file.read_text())["beats"])


@pytest.mark.fault(16, "lock of a killed process", "taken over at once")
def test_a_killed_holder_is_taken_over_at_once(fault: Fault, run: RunDir) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from trainer.lock import RunLock; "
        "from trainer.rundir import RunDir; RunLock(RunDir(Path(sys.argv[1]))).__enter__(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)])
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # as under a parent that never asks: a zombie stays
    assert run.lock_file.exists()
    began = time.monotonic()
    with RunLock(run):
        took = time.monotonic() - began
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    holder.wait()
    assert took < lock.HEARTBEAT_S
    fault.times += 1
    fault.figure = f"after {took:.1f} s"


@pytest.mark.fault(16, "lock of a process whose number another has now; of before a restart", "taken over")
def test_what_was_before_is_not_the_holder(fault: Fault, run: RunDir) -> None:
    with RunLock(run):
        known = json.loads(run.lock_file.read_text())
    assert lock.is_alive(known, run.lock_file)
    for change in ({"process_started": "1"}, {"boot_id": "before"}):
        run.lock_file.write_text(json.dumps({**known, **change}))
        with RunLock(run):
            assert json.loads(run.lock_file.read_text())["process_started"] == known["process_started"]
        fault.times += 1
    fault.figure = f"{fault.times} of {fault.times}"


@needs_namespaces
@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()], ids=["other name", "same name"])
@pytest.mark.parametrize("wrong_h", [-DAY_H, DAY_H], ids=["a day behind", "a day ahead"])
@pytest.mark.fault(16, "lock of another host, its clock a day off", "no false takeover; taken over once it is dead")
def test_another_host_is_judged_by_its_heartbeat(
    fault: Fault,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    host: str,
    wrong_h: float,
) -> None:
    """In namespaces: a host name, and processes' numbers, of its own; as a container on this host has, too."""
    fault.injected = f"lock of another host ({request.node.callspec.id})"
    monkeypatch.setattr(lock, "HEARTBEAT_S", QUICK_S)
    monkeypatch.setattr(lock, "SILENT_AFTER_S", 4 * QUICK_S * 2)
    with held(run, host, wrong_h) as pid:
        for _ in range(5):
            with pytest.raises(RunError, match="is being trained by process 1 on"), RunLock(run):
                pass
            fault.times += 1
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with RunLock(run):
            took = time.monotonic() - began
    assert took >= lock.SILENT_AFTER_S
    fault.figure = f"refused {fault.times} of {fault.times}; dead, taken over after {took:.1f} s of silence"


@pytest.mark.slow
@needs_namespaces
@pytest.mark.fault(16, "a holder on another host, at the real heartbeat, stopped", "no false takeover; 20 s of silence")
def test_a_stopped_holder_elsewhere_is_taken_over_after_its_silence(fault: Fault, run: RunDir) -> None:
    with held(run, "elsewhere", heartbeat_s=lock.HEARTBEAT_S) as pid:
        with pytest.raises(RunError, match="on elsewhere"), RunLock(run):
            pass
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with RunLock(run) as mine:
            took = time.monotonic() - began
            os.kill(pid, signal.SIGCONT)
            time.sleep(2 * lock.HEARTBEAT_S)  # in which it would write its next heartbeat
            mine.check()
    fault.times += 1
    fault.figure = f"taken over after {took:.0f} s; awake again, it left the lock alone"
    assert took >= lock.SILENT_AFTER_S


ACTS = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 3)), max_size=30)


@given(ACTS)
def _follows_the_newest(acts: list[tuple[bool, int, int]]) -> None:
    """What counts is what the newest attempt has built on, and itself written, whatever any other has written since.

    An attempt is claimed and goes on from one of the checkpoints that count (not the newest, where that is damaged, or
    was not there yet when it looked); or any attempt there ever was, stopped or not, commits a later step than before.
    """
    resumed: dict[int, int] = {1: 0}
    reached: dict[int, int] = {1: 0}
    committed: list[tuple[int, int]] = []
    lineage: list[tuple[int, int]] = []
    for claims, which, steps in acts:
        if claims:
            at = lineage[-1 - which % len(lineage)][0] if lineage else 0
            resumed[newest := len(resumed) + 1] = reached[len(resumed)] = at
            lineage = [(step, attempt) for step, attempt in lineage if step <= at]
        else:
            newest = len(resumed)
            attempt = newest - which % newest
            reached[attempt] += steps
            committed.append((reached[attempt], attempt))
            if attempt == newest:
                lineage.append(committed[-1])
        assert [c for c in committed if ck.counts(*c, resumed)] == lineage


@pytest.mark.fault(
    16, "any order of claims and commits, by attempts stopped and woken", "only the newest's history counts"
)
def test_only_the_newest_attempts_history_counts(fault: Fault) -> None:
    _follows_the_newest()
    fault.times = 100
    fault.figure = "100 random histories of up to 30 acts: the rule and the lineage agree"
