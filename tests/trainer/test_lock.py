import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import lock
from trainer.errors import RunError
from trainer.lock import RunLock
from trainer.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def edit(run: RunDir, **changes: object) -> None:
    run.lock_file.write_text(json.dumps({**json.loads(run.lock_file.read_text()), **changes}))


def test_a_live_holder_is_respected_and_a_released_lock_is_free(run: RunDir) -> None:
    with RunLock(run), pytest.raises(RunError, match=f"process {os.getpid()}"), RunLock(run):
        pass
    assert not run.lock_file.exists()
    with RunLock(run):
        pass


def test_a_killed_holder_is_taken_over_at_once(run: RunDir) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from trainer.lock import RunLock; "
        "from trainer.rundir import RunDir; RunLock(RunDir(Path(sys.argv[1]))).__enter__(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)])
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # as under a parent that never asks: a zombie stays
    assert run.lock_file.exists()
    with RunLock(run):
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    holder.wait()


def test_a_process_number_that_was_given_again_is_not_the_holder(run: RunDir) -> None:
    held = RunLock(run)
    held.__enter__()
    edit(run, process_started="1")
    assert not lock.is_alive(json.loads(run.lock_file.read_text()), run.lock_file)
    held.__exit__(None, None, None)


def test_another_host_is_judged_by_its_heartbeat(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENT_AFTER_S", 1.0)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    elsewhere = {
        "host": "elsewhere",
        "boot_id": "another",
        "pid_namespace": "pid:[1]",
        "pid": 1,
        "process_started": "1",
        "job": None,
        "job_restarts": 0,
        "since": "then",
        "beats": 4,
    }
    run.lock_file.write_text(json.dumps(elsewhere))
    assert not lock.is_alive(elsewhere, run.lock_file)
    run.lock_file.write_text(json.dumps({**elsewhere, "beats": 5}))
    assert lock.is_alive(elsewhere, run.lock_file)


def test_this_host_before_a_restart_is_gone(run: RunDir) -> None:
    with RunLock(run):
        known = json.loads(run.lock_file.read_text())
        assert not lock.is_alive({**known, "boot_id": "before"}, run.lock_file)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pid": 1}', b"[]"])
def test_a_damaged_lock_holds_nobody_up(run: RunDir, content: bytes) -> None:
    run.lock_file.write_bytes(content)
    with RunLock(run):
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()


def test_a_holder_that_lost_its_run_leaves_the_new_ones_lock_alone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a suspended process wakes up after another host has taken over."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    with RunLock(run):
        edit(run, host="elsewhere", beats=7)
        time.sleep(0.3)
        assert json.loads(run.lock_file.read_text())["beats"] == 7
    assert json.loads(run.lock_file.read_text())["host"] == "elsewhere"


def test_who_has_taken_a_run_over_is_said(run: RunDir) -> None:
    with RunLock(run) as held:
        held.check()
        edit(run, host="elsewhere", pid=17)
        with pytest.raises(RunError, match="has been taken over by process 17 on elsewhere"):
            held.check()
        run.lock_file.unlink()
        with pytest.raises(RunError, match="has been taken over by another start"):
            held.check()


def test_of_two_that_take_over_one_dead_lock_one_ends(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one removes and replaces the lock just after we have taken it."""
    with RunLock(run):
        edit(run, process_started="1")
        dead = run.lock_file.read_text()

    def replaced(_: float) -> None:
        edit(run, pid=1)

    run.lock_file.write_text(dead)
    monkeypatch.setattr(lock.time, "sleep", replaced)
    with pytest.raises(RunError, match="twice in the same moment"), RunLock(run):
        pass
    assert json.loads(run.lock_file.read_text())["pid"] == 1, "it is the other's, and stays"


def test_an_earlier_start_of_the_same_batch_job_is_over(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """However alive it looks: the batch system requeues a job when it has given the first start up."""
    monkeypatch.setenv("TISSUEGRID_JOB", "17")
    monkeypatch.setenv("TISSUEGRID_JOB_RESTARTS", "0")
    first = RunLock(run)
    first.__enter__()
    with pytest.raises(RunError, match="is being trained"), RunLock(run):
        pass
    monkeypatch.setenv("TISSUEGRID_JOB_RESTARTS", "1")
    with RunLock(run):
        assert json.loads(run.lock_file.read_text())["job_restarts"] == 1
    first.__exit__(None, None, None)


def test_a_storage_that_does_not_answer_has_not_given_the_run_away(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    with RunLock(run) as held:
        aside = run.lock_file.rename(run.path / "aside")
        run.lock_file.mkdir()  # every read of it is an error
        held.check()
        time.sleep(0.3)
        run.lock_file.rmdir()
        aside.rename(run.lock_file)
        before = json.loads(run.lock_file.read_text())["beats"]
        time.sleep(0.3)
        assert json.loads(run.lock_file.read_text())["beats"] > before


def test_a_beat_that_comes_late_leaves_the_new_holders_lock_alone(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended between its look at the lock and its beat, as where the storage is slow just then."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    held = RunLock(run)
    took_over = threading.Event()

    def suspended() -> None:
        if took_over.is_set():
            return
        known = json.loads(run.lock_file.read_text())
        run.lock_file.unlink()
        run.lock_file.write_text(json.dumps({**known, "host": "elsewhere", "beats": 7}))
        took_over.set()

    with held:
        monkeypatch.setattr(held, "_taker", suspended)
        assert took_over.wait(10)
        time.sleep(0.3)  # some beats
        holder = json.loads(run.lock_file.read_text())
        assert (holder["host"], holder["beats"]) == ("elsewhere", 7)
    assert run.lock_file.exists()
