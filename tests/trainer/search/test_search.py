"""Searches over a real, private Ray: what they try, choose, look at and refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import write_config
from tests.runs import weights
from tests.trainer.search.searches import (
    BASE,
    Command,
    search_of,
    trials_of,
)
from trainer.__main__ import main
from trainer.config import load_config
from trainer.plan import make_plan, write_run
from trainer.predictions import read_predictions
from trainer.ranks import Ranks
from trainer.rundir import RunDir, read_json, read_json_lines
from trainer.scale import this_machine
from trainer.worker import work


class Searched:
    """A grid search that has ended: three learning rates, of which one is too high, at depth 0, on one trunk."""

    def __init__(self, config: Path, output: str):
        self.config, self.output = config, output
        self.search = search_of(config)
        self.state = self.search.read()
        self.trials = {one["parameters"]["optim.lr"]: one for one in trials_of(config)}

    def run(self, lr: float) -> RunDir:
        return RunDir(self.search.trials_dir / self.trials[lr]["run"])


@pytest.fixture(scope="module")
def searched(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    options = {
        **BASE,
        "search.searcher": "grid",
        "search.share_trunk": "auto",
        "search.space": {"optim.lr": {"grid": [1e-2, 1e-5, 1e38]}, "model.unfrozen_depth": {"choice": [0]}},
        "search.final_seeds": 2,
        "data.split": "random",
        "data.test_fraction": 0.2,
    }
    config = write_config(folder / "search.yaml", stores, folder / "runs", options)
    code, output = Command(config).end()
    assert code == 0, output
    return Searched(config, output)


def test_a_grid_is_covered_exactly(searched: Searched) -> None:
    assert sorted(searched.trials) == [1e-5, 1e-2, 1e38]
    assert [run.name for run in searched.search.trials()] == ["0001", "0002", "0003"]
    assert "3 trials (grid, no early stopping) of model.unfrozen_depth 0, optim.lr 0.01, " in searched.output
    assert "checkpoints may take 2.2 MB (3 trials and 2 final runs)" in searched.output  # 18,441 x 12 bytes x 10


def test_trials_of_one_trunk_train_together(searched: Searched) -> None:
    assert "3 trials train heads alone: together on 1 trunk, each in one trial's place" in searched.output
    assert searched.state["scale"]["concurrent"] == 1
    attempts = [run.attempts() for run in searched.search.trials()]
    assert [len(each) for each in attempts] == [1, 1, 1]
    assert len({each[1]["pid"] for each in attempts}) == 1


def test_a_trial_that_diverges_is_recorded_and_ends_nothing(searched: Searched) -> None:
    diverged = searched.trials[1e38]
    assert diverged["status"] == "diverged"
    assert "diverged at step" in diverged["message"]
    assert (diverged["value"], diverged["failures"]) == (None, 0)
    assert searched.run(1e38).config_file.exists()
    assert {searched.trials[lr]["status"] for lr in (1e-2, 1e-5)} == {"done"}


def test_a_trial_has_no_data_to_be_tested_on(searched: Searched) -> None:
    for run in searched.search.trials():
        data = yaml.safe_load(run.config_file.read_text())["data"]
        assert data["external"] == {}
        assert data["evaluate_test"] is False
        assert not run.evaluations_file.exists()
        assert {file.name for file in run.predictions_dir.glob("*")} <= {"val.parquet"}


def test_the_choice_is_by_validation_and_tested_once_with_new_seeds(searched: Searched) -> None:
    choice = searched.state["choice"]
    assert choice["split"] == "val"
    assert (choice["of"], choice["candidates"]) == (3, 2)
    values = {one["run"]: one["value"] for one in searched.trials.values() if one["status"] == "done"}
    assert choice["best"] == max(values, key=lambda name: values[name])
    assert choice["value"] - choice["standard_error"] <= values[choice["cheapest"]]
    assert searched.state["state"] == "done"
    assert len(choice["finals"]) == 2
    finals = searched.search.finals()
    assert [run.name for run in finals] == sorted(choice["finals"])
    splits = set()
    for run in finals:
        assert [look["split"] for look in read_json_lines(run.evaluations_file)] == ["test", "elsewhere"]
        record = read_json(run.trial_file)
        assert record["parameters"] == searched.trials[1e-2 if choice["cheapest"] == "0001" else 1e-5]["parameters"]
        assert record["seed"] not in {one["seed"] for one in searched.trials.values()}
        splits.add(run.split_file.read_bytes())
    assert len({read_json(run.trial_file)["seed"] for run in finals}) == 2
    trained_on = {run.split_file.read_bytes() for run in searched.search.trials()}
    assert splits == trained_on, "what is tested on was set aside in every trial"


def test_what_is_said_at_the_end(searched: Searched) -> None:
    choice = searched.state["choice"]
    for words in (
        "tile-level split: tiles of one slide are on both sides",
        f"best: trial {choice['best']}, val/balanced_accuracy {choice['value']:.4f}",
        "of a tile-level split, chosen from 3 trials",
        f"is the choice: trial {choice['cheapest']}",
        "trained again with 2 new seeds: balanced_accuracy on test: ",
        "balanced_accuracy on elsewhere: ",
        "trial 0003 diverged",
        "python -m analysis table",
    ):
        assert words in searched.output


def test_records_say_where_and_how_long(searched: Searched) -> None:
    for one in searched.trials.values():
        assert one["workers"] == 1
        assert one["host"]
        assert one["started"] <= one["ended"]
        assert 0 < one["worker_seconds"] < one["seconds"], "they share a worker's time"
    done = searched.trials[1e-2]
    assert (done["epoch"], done["epochs"]) == (2, 2)
    assert done["value"] == max(line["val/balanced_accuracy"] for line in searched.run(1e-2).read_metrics())
    assert (
        len(read_predictions(searched.run(1e-2).predictions_file("val")).labels) == searched.state["data"]["val_tiles"]
    )


def test_a_trial_is_a_configuration_that_runs_alone(searched: Searched) -> None:
    """To the bit: one worker of one thread, in the search and here."""
    run = searched.run(1e-2)
    plan, data, base = make_plan(load_config(run.config_file, ["--run.name", "alone"]), this_machine())
    write_run(plan, data, base)
    assert plan.run.path == searched.search.path.parent / "alone"
    assert work(plan, Ranks(), lambda _: False).status == "done"
    assert weights(run) == weights(plan.run)
    logits = [read_predictions(one.predictions_file("val")).logits for one in (run, plan.run)]
    assert np.array_equal(*logits)


def test_a_dry_run_says_all_and_does_nothing(
    searched: Searched, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**BASE, "search.searcher": "random", "search.trials": 3, "search.final_seeds": 1}
    config = str(write_config(tmp_path / "search.yaml", stores, tmp_path / "runs", options))
    assert main(["tune", config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in (
        "trials: 3",
        "TUM",
        "3 trials (random, ",
        "(3 trials and 1 final run), and",
        "\ntrial 0003: optim.lr",
    ):
        assert words in said
    assert not (tmp_path / "runs").exists()
    assert main(["tune", str(searched.config), "--dry-run", "--run.seed", "8"]) == 2
    assert "run.seed: was 7, is 8" in capsys.readouterr().err
    assert main(["tune", str(searched.config), "--dry-run", "--run.seed", "8", "--fresh"]) == 0
    assert searched.search.read() == searched.state


def test_a_finished_search_says_so(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in searched.search.path.rglob("trial.json")}
    assert main(["tune", str(searched.config)]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in searched.search.path.rglob("trial.json")}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--search.space", '{"optim.lr": {"grid": [0.01, 0.02]}}'],
            [
                "optim.lr: was {'grid': [0.01, 1e-05, 1e+38]}, is {'grid': [0.01, 0.02]}",
                "unfrozen_depth",
                "is not there",
            ],
        ),
        (["--optim.schedule", "onecycle"], ["optim.schedule: was constant, is onecycle"]),
        (["--run.seed", "3"], ["run.seed: was 7, is 3"]),
        (["--search.scheduler", "asha"], ["search.scheduler: was none, is asha"]),
    ],
    ids=["space", "base", "seed", "scheduler"],
)
def test_another_search_under_its_name_is_refused(
    searched: Searched, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    before = searched.search.search_file.read_bytes()
    assert main(["tune", str(searched.config), *flags]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in [*words, "is another search", "--fresh"]), said
    assert searched.search.search_file.read_bytes() == before


def test_a_run_and_a_search_do_not_share_a_name(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(searched.config), "--debug"]) == 2
    assert "is the name of a search" in capsys.readouterr().err
    assert main(["train", str(searched.config), "--debug", "--run.name", "alone2", "--loop.epochs", "1"]) == 0
    assert main(["tune", str(searched.config), "--run.name", "alone2"]) == 2
    assert "is the name of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale.workers": 64, "scale.cpus_per_worker": 1}, ["not one trial of 64 workers", "lower scale.workers"]),
        ({"data.tiles": "no/such/store", "scale.workers": 999}, ["no/such/store", "999 workers"]),
        (
            {"search.space": {"augment.eval_resize": {"choice": [48, 64]}}},
            ["trial 0001", "augment.eval_resize, augment.eval_crop: go together"],
        ),
    ],
    ids=["room", "data", "combination"],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: dict[str, object], words: list[str]
) -> None:
    config = make(**options)
    assert main(["tune", str(config)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not search_of(config).path.exists()
