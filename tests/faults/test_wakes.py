"""Attempts that are stopped, and wake when another has taken the run over: nothing of theirs counts, or harms it."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.command import wait_until
from tests.faults.file_events import watch
from tests.faults.ledger import Fault
from tests.faults.starts import Fork, Place, end_all, few_tiles
from tests.runs import weights
from trainer import checkpoint as ck
from trainer.errors import RunError
from trainer.loop import Position
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir, read_json
from trainer.worker import claim, save

METRIC = "val/balanced_accuracy"
NEVER = -1
EVERY_OTHER_STEP: dict[str, object] = {"loop.checkpoint_every": 2, "loop.epochs": 6}


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    end_all()


class TinyLearner:
    """What a save asks of a learner."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"fc.weight": torch.ones(4)}

    def state(self, position: Position) -> dict[str, Any]:
        return {"position": {"step": position.step, "history": position.history}}


LEARNER: Any = TinyLearner()


def plan_in(folder: Path) -> Any:
    """As much of a plan as a save looks at."""
    folder.mkdir()
    facts = {"fingerprints": {"data.tiles": ""}, "config_hash": "", "base_sha256": "", "micro_batch": 1}
    loop = SimpleNamespace(best_metric=METRIC, keep=2)
    return SimpleNamespace(run=RunDir(folder), config=SimpleNamespace(loop=loop), **facts)


def history(attempts: tuple[int, ...]) -> list[Json]:
    """Epochs of one step, each by an attempt; the first of the second attempt's is the best."""
    best = attempts.index(2) if 2 in attempts else 0
    values = [0.9 if epoch == best else 0.5 for epoch in range(len(attempts))]
    epochs = enumerate(zip(attempts, values, strict=True), 1)
    return [{"epoch": epoch, "step": epoch, "attempt": by, METRIC: value} for epoch, (by, value) in epochs]


def save_epoch(plan: Any, attempts: tuple[int, ...]) -> None:
    """The last of these attempts saves its epoch, which is the last."""
    position = Position(epoch=len(attempts), step=len(attempts), history=history(attempts))
    save(plan, LEARNER, attempts[-1], Ranks(), position)


def save_stopping(plan: Any, attempts: tuple[int, ...], at: int) -> int:
    """The same, by a process that stops itself before the `at`th thing that it would do in the run's directory."""
    acts = itertools.count()

    def see(*act: object) -> None:
        if next(acts) == at:
            print("stopped before", *act, flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)

    watch(plan.run.path, see)
    try:
        save_epoch(plan, attempts)
    except (RunError, OSError) as error:
        print(error)
        return 1
    return 0


def start_save(plan: Any, attempts: tuple[int, ...], at: int) -> Fork:
    return Fork(plan.run.path.with_suffix(f".{attempts[-1]}"), plan.run.path, save_stopping, plan, attempts, at)


def check_history(plan: Any, attempts: tuple[int, ...]) -> None:
    """The run's files say this history, and a start goes on from its end."""
    expected = history(attempts)
    assert plan.run.read_metrics() == expected
    best, newest = max(expected, key=lambda epoch: epoch[METRIC]), expected[-1]
    assert read_json(plan.run.best_file)["step"] == best["step"]
    counted = {(c.step, c.attempt) for c in ck.listed(plan.run)}
    assert counted <= {(epoch["step"], epoch["attempt"]) for epoch in expected}
    assert counted >= {(epoch["step"], epoch["attempt"]) for epoch in (best, newest)}
    assert [c for c in ck.listed(plan.run) if ck.find_flaw(c)] == []
    found, said = ck.newest_good(plan.run)
    assert found is not None
    assert (found.step, found.attempt, said) == (newest["step"], newest["attempt"], [])


def is_told(plan: Any, attempts: tuple[int, ...]) -> bool:
    best = max(history(attempts), key=lambda epoch: epoch[METRIC])
    return plan.run.read_metrics() == history(attempts) and read_json(plan.run.best_file)["step"] == best["step"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the new one's first commit", "in the midst of it", "after its second"])
@pytest.mark.fault(16, "an attempt stopped before each file operation of a save", "the new one's history alone counts")
def test_a_save_that_was_stopped_harms_nothing(fault: Fault, tmp_path: Path, when: str) -> None:
    fault.injected += f", waking {when}"
    late = 0
    for at in itertools.count():
        plan = plan_in(tmp_path / str(at))
        claim(plan, Ranks(), lambda _: False)
        for epoch in (1, 2):
            save_epoch(plan, (1,) * epoch)
        old = start_save(plan, (1, 1, 1), at)
        if not old.stops():
            assert old.end()[0] == 0
            break
        start = claim(plan, Ranks(), lambda _: False)
        assert start.checkpoint is not None
        went_on = (1,) * start.checkpoint.step

        if when.startswith("before"):
            old.wake()
            old.end()
            save_epoch(plan, (*went_on, 2))
        elif when.startswith("in"):
            new = start_save(plan, (*went_on, 2), 14)
            assert new.stops()
            assert list(plan.run.checkpoints_dir.glob(".*-a0002.tmp/*")), "it is in the midst of its commit"
            old.wake()
            old.end()
            new.wake()
            code, said = new.end()
            assert code == 0, said
        else:
            save_epoch(plan, (*went_on, 2))
            save_epoch(plan, (*went_on, 2, 2))
            old.wake()
            old.end()
            late += not is_told(plan, (*went_on, 2, 2))
            save_epoch(plan, (*went_on, 2, 2, 2))
        of_new = 3 if when.startswith("after") else 1
        check_history(plan, (*went_on, *(2,) * of_new))
        fault.times += 1
    assert fault.times > 20
    fault.figure = f"nothing of it counted, {fault.times} of {fault.times}"
    if when.startswith("after"):
        fault.figure += f"; in {late} it wrote metrics.jsonl or best.json, right again with the next save"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return few_tiles(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def alone(few: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nobody disturbed."""
    place = Place(tmp_path_factory.mktemp("alone"), few, EVERY_OTHER_STEP)
    assert place.train("one").end()[0] == 0
    return place.run


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.fault(
    16, "SIGSTOP of a training at a random step, its batch job started again", "it ends; nothing of it counts"
)
def test_a_stopped_training_that_wakes_ends(
    fault: Fault,
    few: tuple[Path, Path],
    tmp_path: Path,
    alone: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    monkeypatch.setenv("TISSUEGRID_JOB", "17")
    fault.injected += f"; it wakes {when} the new one's first commit"
    for number in range(5):
        place = Place(tmp_path, few, EVERY_OTHER_STEP, f"run{number}")
        monkeypatch.setenv("TISSUEGRID_JOB_RESTARTS", "0")
        old = place.train("old")
        step = random.randrange(2, 14)
        wait_until(lambda run=place.run, step=step: ck.newest_step(run) >= step, "a step")  # type: ignore[misc]
        old.stop()
        monkeypatch.setenv("TISSUEGRID_JOB_RESTARTS", "1")
        new = place.train("new")
        wait_until(lambda run=place.run: run.newest_attempt() == 2, "its attempt")  # type: ignore[misc]
        if when == "before":
            new.stop()
            assert not list(place.run.checkpoints_dir.glob("step-*-a0002")), "nothing is committed yet"
            old.wake()
            code, said = old.end()
            new.wake()
        else:
            wait_until(
                lambda run=place.run: list(run.checkpoints_dir.glob("step-*-a0002")) != [],  # type: ignore[misc]
                "its first commit",
            )
            old.wake()
            code, said = old.end()
        assert code == 1, said
        assert f"attempt 2 has taken run {place.name} over from attempt 1" in said
        assert new.end()[0] == 0
        assert weights(place.run) == weights(alone)
        resumed = place.run.attempts()[2]["resumed_step"]
        assert all(epoch["attempt"] == (1 if epoch["step"] <= resumed else 2) for epoch in place.run.read_metrics())
        fault.times += 1
    fault.figure = f"ended with that message, and the weights as of a run alone, {fault.times} of {fault.times}"
