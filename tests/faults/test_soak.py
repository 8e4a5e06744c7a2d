"""A training in which anything may be killed at any moment of half an hour, and which then goes on to its end."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.command import LIMIT_S, Command, over_nodes, wait_until
from tests.conftest import write_config
from tests.faults.ledger import Fault
from tests.faults.ray_processes import drivers, gcs, raylets, workers
from tests.faults.training import OPTIONS, Training
from tests.runs import trained_alone, weights
from trainer.checkpoint import newest_step

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
"""How long things are killed."""
EPOCHS, STEPS_AN_EPOCH = round(6 * MINUTES), 6
"""More than are trained meanwhile: 16 steps a minute on two cores."""
NODES = 3
PAUSE_S = 20.0
AT_ANY_MOMENT = 0.25
"""The share of kills that do not wait until the training has come further: too many, and it never would."""
KINDS: dict[str, tuple[Callable[[Path], list[psutil.Process]], int]] = {
    "SIGKILL of a worker": (workers, 8),
    "SIGKILL of a raylet, or the head's": (raylets, 3),
    "SIGKILL of the head's GCS": (gcs, 1),
    "SIGKILL of the driver": (drivers, 3),
}
"""What is killed, and how often beside the others."""


@pytest.mark.soak
@pytest.mark.fault(26, "SIGKILL of a worker", "finishes; weights bit-identical")
@pytest.mark.fault(26, "SIGKILL of a raylet, or the head's", "finishes; weights bit-identical")
@pytest.mark.fault(26, "SIGKILL of the head's GCS", "finishes; weights bit-identical")
@pytest.mark.fault(26, "SIGKILL of the driver", "finishes; weights bit-identical")
@pytest.mark.usefixtures("nothing_is_left")
def test_anything_is_killed_at_any_moment(
    faults: list[Fault],
    make_training: Callable[..., Training],
    stores: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers on three nodes, and the same command as often as one ends: nothing else helps the run along."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    training, rows = make_training(**{"loop.epochs": EPOCHS}), {fault.injected: fault for fault in faults}
    started, code, commands = time.monotonic(), None, 0
    until = started + 60 * MINUTES
    while code != 0:
        assert time.monotonic() < until + 2 * LIMIT_S, f"at step {newest_step(training.run)}"
        command, commands = Command(training.config, launcher=over_nodes(NODES, tmp_path / "meetings")), commands + 1
        disturb(command, training, tmp_path, rows, until)
        code, output = command.end()
        print(f"command {commands} ended with {code}:\n{output}")
    minutes = (time.monotonic() - started) / 60

    assert all(fault.times for fault in faults)
    alone = write_config(tmp_path / "alone.yaml", stores, tmp_path / "alone", {**OPTIONS, "loop.epochs": EPOCHS})
    last = EPOCHS * STEPS_AN_EPOCH
    assert weights(training.run, last) == weights(trained_alone(alone, 60 * MINUTES + LIMIT_S), last)
    for fault in faults:
        fault.figure = (
            f"finished {last} steps after {minutes:.0f} min, {commands} commands and "
            f"{training.run.newest_attempt()} attempts; bit-identical"
        )


def disturb(command: Command, training: Training, mark: Path, rows: dict[str, Fault], until: float) -> None:
    """Kills one thing after another while a command works: what never was at first, then what chance will have."""
    process, run = command.process, training.run
    while process.poll() is None and time.monotonic() < until:
        before = newest_step(run)
        if random.random() > AT_ANY_MOMENT:
            wait_until(lambda step=before: newest_step(run) > step or process.poll() is not None, "a step")  # type: ignore[misc]
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, PAUSE_S))
            return
        never = [kind for kind, row in rows.items() if not row.times]
        (kind,) = never[:1] or random.choices(list(KINDS), [often for _, often in KINDS.values()])
        with suppress(psutil.NoSuchProcess, IndexError):  # as where Ray has just ended it, or there is none
            random.choice(KINDS[kind][0](mark)).kill()
            rows[kind].times += 1
            print(f"{time.strftime('%X')} {kind} at step {newest_step(run)}")
