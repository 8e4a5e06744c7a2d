"""Workers killed at random steps and started again, against workers that nobody disturbed."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import MakeConfig
from tests.processes import train_killed_at
from tests.runs import weights
from trainer.checkpoint import listed, load_best_model, quarantine, read
from trainer.config import Config
from trainer.data import open_data
from trainer.errors import UsageError
from trainer.loop import scores
from trainer.plan import Plan, as_begun, halve_micro_batch, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import RunDir
from trainer.scale import this_machine
from trainer.tiles.augment import evaluation_batch
from trainer.worker import work, work_alone

STEPS = 12
ONECYCLE: dict[str, object] = {"optim.schedule": "onecycle"}
RECIPE: dict[str, object] = {
    "optim.name": "adamw",
    "optim.weight_decay": 0.05,
    "optim.layer_decay": 0.7,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 0.5,
    "optim.clip_norm": 0.5,
    "optim.label_smoothing": 0.1,
    "optim.class_weights": "balanced",
    "optim.ema": 0.8,
    "augment.rot90": True,
    "augment.hue": 0.05,
    "augment.stain": 0.1,
}


def start(config: Config) -> Plan:
    plan, data, base = make_plan(config, this_machine())
    write_run(plan, data, base)
    return plan


@pytest.mark.parametrize(
    ("workers", "recipe"),
    [
        pytest.param(1, RECIPE, id="1-recipe", marks=pytest.mark.slow),
        pytest.param(2, ONECYCLE, id="2-onecycle"),
        pytest.param(3, RECIPE, id="3-recipe", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_steps_it_ends_bit_identical(
    make_config: MakeConfig, workers: int, recipe: dict[str, object]
) -> None:
    """Learning BatchNorm (depth 1), a schedule, checkpoints in mid-epoch; every process killed at a random step.

    What is compared holds the average of the weights too, where there is one.
    """
    options = {
        "model.unfrozen_depth": 1,
        **recipe,
        "scale.workers": workers,
        "loop.checkpoint_every": 3,
        "loop.micro_batch": 4,  # each step is accumulated
    }
    undisturbed = start(make_config(**options, **{"run.name": "undisturbed"}))
    assert train_killed_at(undisturbed, None).status == "done"

    disturbed = start(make_config(**options, **{"run.name": "disturbed"}))
    step = random.randrange(1, STEPS)
    print(f"killed at step {step}")
    assert train_killed_at(disturbed, step) is None
    assert train_killed_at(disturbed, None).status == "done"

    assert len(disturbed.run.attempts()) == 2
    assert weights(disturbed.run, STEPS) == weights(undisturbed.run, STEPS)
    expected, found = (run.run.read_metrics() for run in (undisturbed, disturbed))
    for name in ("epoch", "step", "val/loss", "val/balanced_accuracy", "lr"):
        assert [epoch[name] for epoch in found] == [epoch[name] for epoch in expected]
    assert [epoch["train/loss"] for epoch in found] == pytest.approx([epoch["train/loss"] for epoch in expected])


@pytest.fixture
def trained(make_config: MakeConfig) -> Plan:
    """A small run, trained in this process."""
    plan = start(make_config(**{"scale.workers": 1}))
    assert work(plan, Ranks(), lambda _: False).status == "done"
    return plan


def test_predictions_are_the_best_checkpoints_on_every_part(trained: Plan) -> None:
    data = open_data(trained.config, trained.run.split_file)
    model = load_best_model(trained.run)
    for part in ("val", "elsewhere"):
        table = pq.read_table(trained.run.predictions_file(part))
        assert json.loads(table.schema.metadata[b"classes"]) == list(trained.classes)
        frame = table.to_pandas()
        index = data.index(part)
        assert list(frame["tile_id"]) == list(index["tile_id"])
        assert list(frame["label"]) == list(index["label"])
        pixels = torch.from_numpy(data.tiles(part).tiles[index.index])
        with torch.no_grad():
            expected = model(evaluation_batch(pixels, trained.config.augment)).numpy()
        assert np.allclose(np.stack(frame["logits"]), expected, atol=1e-5)


def test_the_run_directory_keeps_its_contract(trained: Plan) -> None:
    run = trained.run
    assert list(pd.read_parquet(run.split_file).columns) == ["tile_id", "split"]
    looks = [json.loads(line) for line in run.evaluations_file.read_text().splitlines()]
    assert [look["split"] for look in looks] == ["elsewhere"]
    history = run.read_metrics()
    assert [record["epoch"] for record in history] == [1, 2]
    best = json.loads(run.best_file.read_text())
    assert best["value"] == max(record["val/balanced_accuracy"] for record in history)
    state = torch.load(listed(run)[0].path / "state.pt", weights_only=True)
    assert state["position"]["history"] == history
    names = set(torch.load(listed(run)[0].path / "state.pt", weights_only=True))
    assert names == {"optimizer", "schedule", "position"}
    assert [file.name for file in (run.storage / "weights").iterdir()] == [f"{trained.base_sha256}.safetensors"]


def test_a_finished_run_is_not_evaluated_again(trained: Plan) -> None:
    looked = trained.run.evaluations_file.read_text()
    assert work(trained, Ranks(), lambda _: False).status == "done"
    assert trained.run.evaluations_file.read_text() == looked


def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_more(trained: Plan) -> None:
    newest, before = listed(trained.run)[:2]
    expected = weights(trained.run)
    (newest.path / "manifest.json").unlink()
    said: list[str] = []

    def report(message: dict[str, object]) -> bool:
        said.extend(message.get("lines", []))  # type: ignore[arg-type]
        return False

    assert work(trained, Ranks(), report).status == "done"
    assert newest.path.name in said[0]
    assert "no manifest" in said[0]
    assert before.path.name in said[1]
    again = listed(trained.run)[0]
    assert (again.step, again.attempt) == (newest.step, 2)
    assert weights(trained.run) == expected


def test_a_diverging_run_fails_and_names_the_remedy(make_config: MakeConfig) -> None:
    plan = start(make_config(**{"optim.lr": 1e30, "scale.workers": 1, "model.unfrozen_depth": 1}))
    outcome = work(plan, Ranks(), lambda _: False)
    assert outcome.status == "diverged"
    assert "diverged" in outcome.message
    assert "optim.lr" in outcome.message
    assert not listed(plan.run)


def test_short_of_memory_it_goes_on_with_fewer_tiles_at_once(make_config: MakeConfig) -> None:
    """The allocator refuses, for real, while the micro-batch is above 3; batches and results stay the same."""
    options = {"model.norm": "frozen", "scale.workers": 1, "model.unfrozen_depth": 1}
    roomy, tight = (start(make_config(**options, **{"run.name": name})) for name in ("roomy", "tight"))
    assert work(roomy, Ranks(), lambda _: False).status == "done"
    notes: list[str] = []

    def report(message: dict[str, object]) -> bool:
        if message["phase"] == "note":
            notes.extend(message["lines"])  # type: ignore[arg-type]
        if message["phase"] == "train" and tight.run.read_identity()["micro_batch"] > 3:
            torch.empty(1 << 60, dtype=torch.uint8)
        return False

    assert [outcome.status for outcome in work_alone([tight], report)] == ["done"]
    assert [note.split(",")[0] for note in notes] == [
        "out of memory with 12 tiles at once: goes on with 6",
        "out of memory with 6 tiles at once: goes on with 3",
    ]
    assert tight.run.read_identity()["micro_batch"] == 3
    ends = [load_best_model(plan.run).fc.weight.detach() for plan in (roomy, tight)]
    assert torch.allclose(ends[0], ends[1], atol=1e-5 * float(ends[0].abs().max()))


def test_what_was_asked_for_may_be_asked_for_again_after_memory_ran_out(make_config: MakeConfig) -> None:
    """Twice halved, and stopped: the same command goes on with what is left, and so does one that names it."""
    options = {"scale.workers": 1, "loop.epochs": 3, "loop.micro_batch": 12}
    plan = start(make_config(**options))
    for _ in range(2):
        halve_micro_batch(as_begun(plan))
    assert work(as_begun(plan), Ranks(), lambda message: message.get("epoch", 0) > 1).status == "stopped"
    for asked in (12, 3, "auto"):
        assert start(make_config(**{**options, "loop.micro_batch": asked})).micro_batch == 3
    with pytest.raises(UsageError, match=r"loop\.micro_batch: this run was begun with 12, and 6 would"):
        start(make_config(**{**options, "loop.micro_batch": 6}))


def test_where_the_least_is_too_much_it_fails_and_names_the_remedy(make_config: MakeConfig) -> None:
    plan = start(make_config(**{"scale.workers": 1, "loop.micro_batch": 2}))

    def report(_: dict[str, object]) -> bool:
        torch.empty(1 << 60, dtype=torch.uint8)
        return False

    (outcome,) = work_alone([plan], report)
    assert outcome.status == "failed"
    assert "out of memory with 2 tiles at once" in outcome.message
    assert "augment.input_size" in outcome.message


@pytest.mark.parametrize(
    ("recipe", "workers"),
    [
        pytest.param({}, (1, 2), id="plain"),
        pytest.param(RECIPE, (1, 2, 3), id="recipe", marks=pytest.mark.slow),
    ],
)
def test_other_numbers_of_workers_end_within_rounding(
    make_config: MakeConfig, recipe: dict[str, object], workers: tuple[int, ...]
) -> None:
    """Frozen BatchNorm: the same tiles, the same draws, results equal to 1e-5 of their size."""
    ends = []
    for count in workers:
        options = {"model.norm": "frozen", "scale.workers": count, "run.name": f"w{count}", "loop.epochs": 1}
        plan = start(make_config(**options, **recipe))
        assert train_killed_at(replace(plan, micro_batch=4), None).status == "done"
        ends.append(read(listed(plan.run)[0])[0])
    for end in ends[1:]:
        for name, tensor in end.items():
            assert torch.allclose(tensor, ends[0][name], atol=1e-5 * float(ends[0][name].abs().max())), name


def test_with_an_average_of_the_weights_all_that_is_evaluated_is_its(make_config: MakeConfig) -> None:
    plan = start(make_config(**{"scale.workers": 1, "optim.ema": 0.5, "optim.lr": 0.01}))
    assert work(plan, Ranks(), lambda _: False).status == "done"
    best = json.loads(plan.run.best_file.read_text())
    (checkpoint,) = [c for c in listed(plan.run) if c.path.name == best["checkpoint"]]
    tensors, model = read(checkpoint)[0], load_best_model(plan.run)
    assert torch.equal(model.fc.weight, tensors["ema.fc.weight"])
    assert not torch.equal(model.fc.weight, tensors["fc.weight"])
    val = open_data(plan.config, plan.run.split_file).tiles("val")
    logits = np.stack(pq.read_table(plan.run.predictions_file("val")).to_pandas()["logits"])
    with torch.no_grad():
        expected = model(evaluation_batch(torch.from_numpy(val.tiles[val.rows]), plan.config.augment)).numpy()
    assert np.allclose(logits, expected, atol=1e-5)
    history = {record["epoch"]: record for record in plan.run.read_metrics()}
    found = scores(logits, val.labels)
    assert {name: history[best["epoch"]][name] for name in found} == pytest.approx(found)
    assert best["value"] == found["val/balanced_accuracy"]


def test_a_run_from_before_there_was_an_option_goes_on_with_its_default(make_config: MakeConfig) -> None:
    """A run that was begun and stopped knows nothing of options that were added since."""
    plan = start(make_config(**{"scale.workers": 1, "loop.epochs": 3}))
    assert work(plan, Ranks(), lambda message: message.get("epoch", 0) > 1).status == "stopped"
    description = plan.run.read_identity()
    for key in RECIPE.keys() - {"optim.name", "optim.schedule", "optim.class_weights"}:
        del description["identity"][key]
    plan.run.identity_file.write_text(json.dumps(description))
    with pytest.raises(UsageError, match=r"another run:\n  optim.ema: was 0.0, is 0.9\n"):
        start(make_config(**{"scale.workers": 1, "loop.epochs": 3, "optim.ema": 0.9}))
    again = start(make_config(**{"scale.workers": 1, "loop.epochs": 3}))
    assert work(again, Ranks(), lambda _: False).status == "done"
    assert [record["epoch"] for record in plan.run.read_metrics()] == [1, 2, 3]


def test_an_attempt_that_lost_its_run_writes_nothing(trained: Plan) -> None:
    """It was suspended, another took over and trained on; now it wakes in the middle of an epoch."""
    plan = replace(trained, run=RunDir(trained.run.path.rename(trained.run.path.with_name("moved"))))
    newest = listed(plan.run)[0]
    quarantine(plan.run, newest)
    taken: list[int] = []

    def report(message: dict[str, object]) -> bool:
        if message["phase"] == "train" and not taken:
            taken.append(plan.run.newest_attempt() + 1)
            assert plan.run.claim_attempt(taken[0], {"resumed_step": 0})
        return False

    before = plan.run.metrics_file.read_bytes(), plan.run.best_file.read_bytes()
    predictions = plan.run.predictions_file("val").read_bytes()
    plan.run.metrics_file.write_bytes(before[0])
    outcome = work(plan, Ranks(), report)
    assert outcome.status == "failed"
    assert "taken run moved over" in outcome.message
    assert not [c for c in plan.run.checkpoints_dir.iterdir() if f"a{taken[0] - 1:04d}" in c.name]
    assert plan.run.predictions_file("val").read_bytes() == predictions
