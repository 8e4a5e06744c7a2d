"""A storage that is full, read-only, over its quota, gone, slow, or does not answer."""

from __future__ import annotations

import time

import pytest

from tests.command import Command
from tests.faults.ledger import Fault
from tests.faults.mounts import filled, mounted, needs_fuse, needs_mounts, shown, silent, tmpfs
from tests.faults.small import Small
from tests.faults.strace import injected, needs_strace
from tests.runs import wait_for_step
from trainer.lock import HEARTBEAT_S

KEPT = "nothing lost; the message has the path and the free bytes; the same command goes on once the storage is well"
NO_HANG = "no hang beyond the configured limit (scale.timeout_s); nothing lost"
ROOM = 4_000_000
SYNCS = "fsync,fdatasync"
SLOW_S = 0.2
LIMIT_S = 5
ENDS_IN_S = 30
"""What a loaded machine may take to notice and to end, beyond a heartbeat and the limit."""


def check_named(output: str, run: Small, why: str) -> None:
    """One message with the path, the reason and the room that there is."""
    (said,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert str(run.run.path) in said
    assert why in said
    assert "bytes free" in said
    assert "the same command then goes on" in said
    assert "Traceback" not in output


def check_goes_on(run: Small, undisturbed: Small) -> None:
    """The same command, from the last good checkpoint, to the same end."""
    before = run.good_step
    known = run.run.newest_attempt()
    assert run.train() == 0
    assert run.run.attempts()[known + 1]["resumed_step"] == before
    assert run.weights == undisturbed.weights
    assert not run.run.quarantine_dir.exists()


def begin(run: Small, *flags: str) -> Command:
    """The command in a process of its own, when it has saved a step of its first epoch."""
    command = run.command(*flags)
    wait_for_step(run.run, attempt=1, step=2)
    return command


@pytest.mark.slow
@needs_mounts
@pytest.mark.fault(7, "storage full: a tmpfs of 4 MB with room for nothing, a few files, one checkpoint, three", KEPT)
def test_a_full_storage_loses_nothing(
    fault: Fault, small_run: Small, undisturbed: Small, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = []
    for room in (0, 40_000, 400_000, 900_000):
        with mounted(tmpfs(small_run.run.path, ROOM)) as storage:
            with filled(storage.place, but=room):
                capfd.readouterr()
                assert small_run.train() == 1
                check_named(capfd.readouterr().err, small_run, "No space left on device")
                steps.append(small_run.good_step)
            check_goes_on(small_run, undisturbed)
        fault.times += 1
    assert steps[0] == 0 < steps[-1]
    fault.figure = f"stopped after steps {', '.join(map(str, steps))}, went on from there, bit-identical at last"


@pytest.mark.slow
@needs_mounts
@pytest.mark.fault(7, "storage full over Ray, two workers", KEPT)
def test_a_full_storage_loses_nothing_over_ray(fault: Fault, small_run: Small) -> None:
    flags = ("--scale.workers", "2")
    with mounted(tmpfs(small_run.run.path, ROOM)) as storage:
        with filled(storage.place, but=900_000):
            code, output = Command(small_run.config, *flags).end()
            assert code == 1, output
            check_named(output, small_run, "No space left on device")
            stopped = small_run.good_step
            assert stopped > 0
        code, output = Command(small_run.config, *flags).end()
        assert code == 0, output
        assert f"goes on from step-{stopped:08d}" in output
    fault.times += 1
    fault.figure = f"stopped after step {stopped}, went on from there"


@pytest.mark.slow
@needs_mounts
@pytest.mark.fault(7, "storage read-only in mid-run (remounted)", KEPT)
def test_a_storage_that_becomes_read_only_loses_nothing(fault: Fault, small_run: Small, undisturbed: Small) -> None:
    with mounted(shown(small_run.storage, small_run.storage)) as storage:
        command = begin(small_run)
        storage.writable(False)
        code, output = command.end()
        assert code == 1, output
        check_named(output, small_run, "Read-only file system")
        stopped = small_run.good_step
        assert small_run.train() == 1, "nothing can be done before it can be written to"
        storage.writable(True)
        check_goes_on(small_run, undisturbed)
    fault.times += 1
    fault.figure = f"stopped after step {stopped}, went on from there, bit-identical at last"


@needs_strace
@pytest.mark.fault(7, "quota used up: every fsync in mid-run answers EDQUOT", KEPT)
def test_a_quota_error_at_fsync_loses_nothing(fault: Fault, small_run: Small, undisturbed: Small) -> None:
    command = begin(small_run)
    with injected(command.process.pid, SYNCS, "error=EDQUOT"):
        code, output = command.end()
    assert code == 1, output
    check_named(output, small_run, "Disk quota exceeded")
    stopped = small_run.good_step
    assert not list(small_run.run.checkpoints_dir.glob(".*")), "what was begun takes no room"
    check_goes_on(small_run, undisturbed)
    fault.times += 1
    fault.figure = f"stopped after step {stopped}, went on from there, bit-identical at last"


@needs_mounts
@pytest.mark.fault(
    7, "storage gone in mid-run (umount -l)", "stops and names the file; writes nothing in its place; goes on later"
)
def test_a_storage_that_is_gone_loses_nothing(fault: Fault, small_run: Small, undisturbed: Small) -> None:
    content = small_run.storage.rename(small_run.storage.with_name("content"))
    with mounted(shown(content, small_run.storage)) as storage:
        command = begin(small_run)
        storage.gone()
        code, output = command.end()
        assert code == 1, output
        assert f"{small_run.run.attempt_file(1)}: is gone" in output
        assert "Traceback" not in output
        assert not list(storage.place.iterdir()), "nothing was written where it had been"
        storage.back()
        stopped = small_run.good_step
        check_goes_on(small_run, undisturbed)
    fault.times += 1
    fault.figure = f"stopped after step {stopped}, went on from there, bit-identical at last"


@pytest.mark.slow
@needs_strace
@pytest.mark.fault(8, f"slow storage: every fsync takes {SLOW_S} s longer", "trains on, to the same end")
def test_a_slow_storage_is_waited_for(fault: Fault, small_run: Small, undisturbed: Small) -> None:
    command = begin(small_run, "--scale.timeout_s", str(LIMIT_S), "--loop.checkpoint_every", "epoch")
    started = time.monotonic()
    with injected(command.process.pid, SYNCS, f"delay_enter={SLOW_S * 1e6:.0f}"):
        code, output = command.end()
    assert code == 0, output
    assert small_run.weights == undisturbed.weights
    fault.times += 1
    fault.figure = f"to the end in {time.monotonic() - started:.0f} s, bit-identical"


@pytest.mark.slow
@needs_mounts
@needs_fuse
@pytest.mark.fault(8, "stalled storage: in mid-run no call returns any more; then a start on it", NO_HANG)
def test_a_storage_that_does_not_answer_ends_the_run(fault: Fault, small_run: Small, undisturbed: Small) -> None:
    limit = ("--scale.timeout_s", str(LIMIT_S))
    command = begin(small_run, *limit)
    took = []
    with silent(small_run.storage):
        for one, place in ((command, small_run.run.path), (None, small_run.storage)):
            started = time.monotonic()
            code, output = (one or small_run.command(*limit)).end()
            took.append(time.monotonic() - started)
            assert code == 1, output
            assert f"error: {place}: the storage has not answered for {LIMIT_S} s" in output
            assert took[-1] < HEARTBEAT_S + LIMIT_S + ENDS_IN_S
            fault.times += 1
    check_goes_on(small_run, undisturbed)
    fault.figure = f"ended {took[0]:.0f} s after it with a limit of {LIMIT_S} s; went on later, bit-identical at last"
