"""Runs that train together on one trunk, against the same runs alone: stopped, killed, diverging, on several ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import MakeConfig, write_config
from tests.processes import on_ranks
from tests.trainer.test_loop import WEIGHTS, make_learner, make_small, make_tiles, no_report
from tests.trainer.test_loop import make_config as loop_config
from trainer.checkpoint import listed, read
from trainer.config import SearchSection, load_config
from trainer.errors import UsageError
from trainer.ledger import Ledger, Record
from trainer.loop import Hooks, Outcome, Position, Training, fit
from trainer.plan import Plan, make_plan, write_run
from trainer.predictions import read_predictions
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir, read_json
from trainer.scale import this_machine
from trainer.trunk import shares_trunk, together, trunk_of
from trainer.worker import Report, work_together

HEADS: dict[str, dict[str, object]] = {
    "plain": {"optim.lr": 1e-3},
    "sgd": {"optim.name": "sgd", "optim.lr": 0.03, "optim.schedule": "onecycle"},
    "recipe": {
        "optim.name": "adamw",
        "optim.lr": 3e-3,
        "optim.weight_decay": 0.05,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 0.5,
        "optim.clip_norm": 0.5,
        "optim.label_smoothing": 0.1,
        "optim.class_weights": "balanced",
        "optim.ema": 0.8,
    },
}
EPOCHS = 3
Start = Callable[..., Plan]


class KilledError(Exception):
    """Stands for the end of a process: nothing in it catches this."""


@pytest.fixture(scope="module")
def start(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Begins a run in a storage of its own name, so that runs of one name can be compared."""

    def begin(name: str, workers: int = 1, **options: object) -> Plan:
        folder = tmp_path_factory.mktemp("storage")
        shared = {"loop.epochs": EPOCHS, "loop.micro_batch": 5, "loop.checkpoint_every": 2, "loop.keep": 2}
        given = {**shared, **options, "run.name": name, "scale.workers": workers}
        config = load_config(write_config(folder / "config.yaml", stores, folder, given))
        plan, data, base = make_plan(config, this_machine())
        write_run(plan, data, base)
        return plan

    return begin


@pytest.fixture(scope="module")
def alone(start: Start) -> list[Plan]:
    """Each head, trained alone."""
    plans = [start(name, **options) for name, options in HEADS.items()]
    for plan in plans:
        assert train([plan]) == [Outcome("done")]
    return plans


def train(plans: list[Plan], report: Report = no_report) -> list[Outcome]:
    return work_together(plans, Ranks(), report)


def assert_same(found: Plan, expected: Plan, tolerance: float = 1e-6) -> None:
    """Final weights and averages, optimizer, epochs and predictions."""
    (mine, state), (theirs, their_state) = (read(listed(plan.run)[0]) for plan in (found, expected))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=tolerance), name
    assert state["schedule"] == their_state["schedule"]
    assert state["position"]["step"] == their_state["position"]["step"]
    timed = {"seconds", "tiles_per_s", "attempt"}
    histories = [plan.run.read_metrics() for plan in (found, expected)]
    for line, other in zip(*histories, strict=True):
        assert {key: line[key] for key in line.keys() - timed} == pytest.approx(
            {key: other[key] for key in other.keys() - timed}, abs=tolerance
        )
    for part in ("val", "elsewhere"):
        logits, others = (read_predictions(plan.run.predictions_file(part)).logits for plan in (found, expected))
        assert np.allclose(logits, others, rtol=0, atol=tolerance)
    bests = [read_json(plan.run.best_file) for plan in (found, expected)]
    assert bests[0]["temperature"] == pytest.approx(bests[1]["temperature"], rel=1e-4)
    assert bests[0]["stain"] == bests[1]["stain"]
    mine_there, theirs_there = ({file.name for file in plan.run.path.iterdir()} for plan in (found, expected))
    assert mine_there - {"quarantine"} == theirs_there


def test_together_each_ends_as_alone(start: Start, alone: list[Plan]) -> None:
    plans = [start(name, **options) for name, options in HEADS.items()]
    assert train(plans) == [Outcome("done")] * len(plans)
    for plan, expected in zip(plans, alone, strict=True):
        assert_same(plan, expected)
        assert len(plan.run.attempts()) == 1
    ends = [read(listed(plan.run)[0])[0]["fc.weight"] for plan in plans]
    assert not any(torch.allclose(one, ends[0], atol=1e-4) for one in ends[1:]), "they are different heads"


def test_stopped_and_killed_between_two_checkpoints_each_ends_as_alone(start: Start, alone: list[Plan]) -> None:
    """Stopped in an epoch; then killed when the first head has its epoch saved, and the others have not; in mid-epoch,
    when one has lost its newest checkpoint; and at last trained to the end."""
    plans = [start(name, **options) for name, options in HEADS.items()]
    outcomes = train(plans, lambda message: message.get("step", 0) >= 3)
    assert {outcome.status for outcome in outcomes} == {"stopped"}
    assert {listed(plan.run)[0].step for plan in plans} == {4}

    def kill(message: Json) -> bool:
        if message["phase"] == "epoch":
            raise KilledError
        return False

    with pytest.raises(KilledError):
        train(plans, kill)
    assert [listed(plan.run)[0].step for plan in plans] == [6, 4, 4]
    (listed(plans[2].run)[0].path / "manifest.json").unlink()  # goes on from step 2
    assert train(plans) == [Outcome("done")] * len(plans)
    assert [plan.run.attempts()[3]["resumed_step"] for plan in plans] == [6, 4, 2]
    for plan, expected in zip(plans, alone, strict=True):
        assert_same(plan, expected)


@pytest.mark.parametrize("culprit", ["diverges", "cannot begin"])
def test_one_that_ends_early_ends_no_other(start: Start, alone: list[Plan], culprit: str) -> None:
    heads = {"first": {"optim.lr": 1e38 if culprit == "diverges" else 1e-3}, **HEADS}
    plans = [start(name, **options) for name, options in heads.items()]
    if culprit == "cannot begin":
        plans[0].run.attempts_dir.write_text("not a folder")
    told: list[Json] = []

    def report(message: Json) -> bool:
        told.append(message)
        return False

    outcomes = train(plans, report)
    assert [outcome.status for outcome in outcomes[1:]] == ["done"] * len(HEADS)
    for plan, expected in zip(plans[1:], alone, strict=True):
        assert_same(plan, expected)
    assert not plans[0].run.predictions_file("val").exists()
    if culprit == "cannot begin":
        assert outcomes[0].status == "failed"
        assert "attempts" in outcomes[0].message
        return
    assert outcomes[0].status == "diverged"
    assert "try a lower optim.lr than 1e+38" in outcomes[0].message
    said = [message for message in told if message["phase"] == "diverged"]
    assert said == [{"phase": "diverged", "run": "first", "message": outcomes[0].message}]
    assert told.index(said[0]) < len(told) / 3, "it is told at once"


def together_quietly(ranks: Ranks, plans: list[Plan]) -> list[Outcome]:
    return work_together(plans, ranks, no_report)


@pytest.mark.slow
def test_several_ranks_train_heads_together_as_alone(start: Start) -> None:
    plans = [start(name, 2, **options) for name, options in HEADS.items()]
    assert on_ranks(2, together_quietly, plans) == [[Outcome("done")] * len(plans)] * 2
    for plan, (name, options) in zip(plans, HEADS.items(), strict=True):
        expected = start(name, 2, **options)
        assert on_ranks(2, together_quietly, [expected]) == [[Outcome("done")]] * 2
        assert_same(plan, expected)


def passes(heads: int) -> int:
    """How often images go through the trunk in two epochs."""
    counted: list[object] = []
    trainings = []
    for _ in range(heads):
        trunk, learner = make_learner(make_small(), 0, Ranks(), WEIGHTS)
        trainings.append(Training(learner, loop_config(epochs=2), Position(), Hooks(no_report, lambda _: None, 1)))
    trunk.frozen.register_forward_hook(lambda *_: counted.append(1))
    fit(trunk, trainings, make_tiles(40), make_tiles(9), Ranks(), no_report)
    assert {training.position.epoch for training in trainings} == {2}
    return len(counted)


def test_images_go_through_the_trunk_once_for_all_heads() -> None:
    assert passes(5) == passes(1) == 2 * (6 + 1)


def test_trials_train_together_where_they_differ_in_their_heads_alone() -> None:
    def trial(depth: int, **parameters: object) -> tuple[int, dict[str, object]]:
        return depth, {key.replace("__", "."): value for key, value in parameters.items()}

    trials = [
        trial(0, optim__lr=0.1, augment__hue=0.0),
        trial(1, optim__lr=0.1, augment__hue=0.0),
        trial(0, optim__lr=0.2, augment__hue=0.1),
        trial(0, optim__lr=0.3, augment__hue=0.0, optim__ema=0.9),
        trial(1, optim__lr=0.2, augment__hue=0.0),
        trial(0, optim__lr=0.2, augment__hue=0.1, loop__epochs=2),
    ]
    groups = together(range(6), lambda number: trunk_of(trials[number][1], trials[number][0]))
    assert groups == [[0, 3], [1], [2], [4], [5]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"searcher": "random", "scheduler": "none"}, True),
        ({"searcher": "grid", "scheduler": "none"}, True),
        ({"searcher": "grid", "scheduler": "none", "share_trunk": True}, True),
        ({"searcher": "grid", "scheduler": "none", "share_trunk": False}, False),
        ({"searcher": "random", "scheduler": "asha"}, False),
        ({"searcher": "optuna", "scheduler": "none"}, False),
    ],
)
def test_where_trials_share_trunks(options: dict[str, object], expected: bool) -> None:
    assert shares_trunk(SearchSection.model_validate(options)) is expected


@pytest.mark.parametrize(
    "options", [{"searcher": "random", "scheduler": "asha"}, {"searcher": "optuna", "scheduler": "none"}]
)
def test_sharing_that_cannot_be_is_refused(make_config: MakeConfig, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"share_trunk.*true needs search.searcher: random or grid") as error:
        make_config(**{"search.share_trunk": True, **{f"search.{key}": value for key, value in options.items()}})
    assert len(error.value.args) == 1


def test_trials_that_train_together_share_the_workers_time(tmp_path: Path) -> None:
    ledger = Ledger("val/loss", "min", check=lambda: None)
    names = ["0001", "0002", "0003"]
    for number, name in enumerate(names, 1):
        ledger.add(RunDir(tmp_path / name), Record(name, name, number, 0, {}, 3))
    ledger.begin(names, workers=2)
    time.sleep(0.1)
    ledger.end("0001", "diverged")
    time.sleep(0.1)
    ledger.broke("0003", "why", retries=1)
    ledger.end("0002", "done")
    records = [ledger.record(name) for name in names]
    assert sum(record.worker_seconds for record in records) == pytest.approx(2 * records[1].seconds, rel=0.05)
    assert records[0].worker_seconds == pytest.approx(2 * records[0].seconds / 3)
    assert records[1].worker_seconds > records[0].worker_seconds
