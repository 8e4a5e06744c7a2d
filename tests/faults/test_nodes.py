"""Nodes that are lost while they train, and the head among them: several raylets on this machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Command, over_nodes, wait_until
from tests.faults.ledger import Fault
from tests.faults.ray_processes import ended, gcs, is_head, raylet_of, workers
from tests.faults.training import STEPS, Training
from tests.runs import wait_for_step, weights
from trainer.checkpoint import newest_good, newest_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_left")]

DETECTED_S, HEAD_S = 20, 90


@pytest.mark.fault(2, "SIGKILL of a raylet, with a spare node", f"detected in {DETECTED_S} s; completes")
def test_with_a_spare_node(fault: Fault, training: Training, final_weights: str, tmp_path: Path) -> None:
    """Three nodes for two workers lose one."""
    command, run = Command(training.config, launcher=over_nodes(3, tmp_path / "meetings")), training.run
    wait_for_step(run, 1, 2)
    detected = lose_a_node(tmp_path)
    again = detected + wait_for_step(run, 2, 1)
    fault.times = 1
    code, output = command.end()
    assert code == 0, output
    assert detected < DETECTED_S
    assert weights(run, STEPS) == final_weights
    fault.figure = f"detected after {detected:.0f} s, the next checkpoint after {again:.0f} s; bit-identical"


@pytest.mark.fault(
    2,
    "SIGKILL of a raylet, a fixed number of workers without a spare node",
    f"detected in {DETECTED_S} s; ends with a clear message and a good checkpoint",
)
def test_without_a_spare_node(
    fault: Fault, training: Training, final_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes for two workers lose one; what is left of the run is trained by the same command on other nodes."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # Ray's minute, four times
    launcher = over_nodes(2, tmp_path / "meetings")
    command, run = Command(training.config, launcher=launcher), training.run
    wait_for_step(run, 1, 2)
    detected, started = lose_a_node(tmp_path), time.monotonic()
    fault.times = 1
    code, output = command.end()
    took = detected + time.monotonic() - started
    assert code == 1, output
    assert detected < DETECTED_S
    assert "there is no room for 2 workers" in output
    assert "The same command goes on" in output
    assert "Traceback" not in output
    assert newest_good(run)[0] is not None
    assert newest_step(run) < STEPS

    code, output = Command(training.config, launcher=launcher).end()
    assert code == 0, output
    assert weights(run, STEPS) == final_weights
    fault.figure = (
        f"detected after {detected:.0f} s, ended after {took:.0f} s (four waits for room, of 10 s here); the same "
        "command, on other nodes: bit-identical"
    )


@pytest.mark.fault(
    2, "SIGKILL of a raylet, an elastic run without a spare node", f"detected in {DETECTED_S} s; completes"
)
def test_an_elastic_number_of_workers(fault: Fault, make_training: Callable[..., Training], tmp_path: Path) -> None:
    training = make_training(**{"scale.workers": "1:2"})
    command, run = Command(training.config, launcher=over_nodes(2, tmp_path / "meetings")), training.run
    wait_for_step(run, 1, 2)
    detected, committed = lose_a_node(tmp_path), newest_step(run)
    again = detected + wait_for_step(run, 2, 1)
    fault.times = 1
    code, output = command.end()
    assert code == 0, output
    assert detected < DETECTED_S
    assert newest_step(run) == STEPS
    assert run.attempts()[2]["resumed_step"] >= committed
    assert [record["workers"] for record in run.attempts().values()] == [2, 1]
    fault.figure = f"detected after {detected:.0f} s, the next checkpoint, of one worker, after {again:.0f} s"


@pytest.mark.fault(5, "", f"clear non-zero exit within {HEAD_S} s; the same command goes on")
@pytest.mark.parametrize("nodes", [0, 2], ids=["private", "launched"])
def test_the_head(fault: Fault, training: Training, final_weights: str, tmp_path: Path, nodes: int) -> None:
    fault.injected = f"SIGKILL of the head's GCS, {f'{nodes} nodes' if nodes else 'a private Ray'}"
    launcher, run = over_nodes(nodes, tmp_path / "meetings") if nodes else [], training.run
    command = Command(training.config, launcher=launcher)
    wait_for_step(run, 1, 2)
    committed, started = newest_step(run), time.monotonic()
    (server,) = gcs(tmp_path)
    server.kill()
    fault.times = 1
    code, output = command.end()
    took = time.monotonic() - started
    print(output)
    assert code == 1
    assert took < HEAD_S
    assert ("node local0: Ray has ended" if nodes else "is gone") in output
    assert "Traceback" not in output
    fault.figure = f"exit {code} after {took:.0f} s; the same command went on: bit-identical"

    code, output = Command(training.config, launcher=launcher).end()
    assert code == 0, output
    assert run.attempts()[max(run.attempts())]["resumed_step"] >= committed
    assert weights(run, STEPS) == final_weights


def lose_a_node(mark: Path) -> float:
    """Kills the raylet of a worker's node, though not the head's; the seconds until the other worker is ended."""
    away = [one for one in workers(mark) if not is_head(raylet_of(one))]
    victim = random.choice(away)
    (other,) = (one for one in workers(mark) if one != victim)
    print(f"lost the node of {victim.pid}")
    raylet_of(victim).kill()
    return wait_until(lambda: all(map(ended, (victim, other))), "the end of both workers")
