"""What is settled before a search starts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, MakeConfig
from trainer.config import load_config
from trainer.data import open_data
from trainer.errors import UsageError
from trainer.scale import this_machine
from trainer.search_plan import SearchPlan, make_search_plan
from trainer.space import Space
from trainer.tiles.pack import pack


def planned(make_config: MakeConfig, space: dict[str, Any], **options: object) -> SearchPlan:
    given = {"search.space": space, "search.searcher": "random", "run.name": "planned", **options}
    return make_search_plan(make_config(**given), this_machine())[0]


LR = {"optim.lr": {"choice": [1e-3]}}
SCHEDULES = {"optim.schedule": {"choice": ["cosine", "onecycle"]}, "optim.warmup_epochs": {"choice": [0, 1.5]}}


@pytest.mark.parametrize(
    ("space", "options", "epochs", "warm_up"),
    [
        (LR, {"loop.epochs": 4}, 4, 0),
        (LR, {"loop.epochs": 10, "optim.schedule": "onecycle"}, 10, 3),
        (LR, {"loop.epochs": 10, "optim.schedule": "cosine", "optim.warmup_epochs": 1.5}, 10, 2),
        ({"loop.epochs": {"choice": [2, 10]}}, {"optim.schedule": "onecycle"}, 10, 3),
        (SCHEDULES, {"loop.epochs": 5, "optim.schedule": "onecycle"}, 5, 2),
    ],
    ids=["constant", "onecycle", "cosine", "epochs", "schedules"],
)
def test_nothing_is_stopped_while_a_learning_rate_rises(
    make_config: MakeConfig, space: dict[str, Any], options: dict[str, object], epochs: int, warm_up: int
) -> None:
    # Of schedules and warm-ups not every pair goes together, so they are not all drawn in advance.
    searcher = "optuna" if space is SCHEDULES else "random"
    plan = planned(make_config, space, **{**options, "search.searcher": searcher})
    assert (plan.epochs, plan.warm_up) == (epochs, warm_up)


def test_averages_are_to_have_left_their_start_where_trials_are_first_judged(make_config: MakeConfig) -> None:
    """configs/search.yaml on the tiles that it is for; and with the average of configs/nct.yaml, which is longer."""
    plan = planned(make_config, LR)
    for flags, rest in ([], 0), (["--optim.ema", "0.998"], 26), (["--search.scheduler", "none"], 0):
        config = load_config(REPOSITORY / "configs" / "search.yaml", flags)
        warned = replace(plan, config=config, space=Space.read(config.search.space)).ema_warnings(85_000)
        assert [f"may be stopped after 666: {rest}% of what is evaluated" in line for line in warned] == [True] * bool(
            rest
        )
    searched = {"optim.ema": {"choice": [0.0, 0.9]}}
    (line,) = planned(make_config, searched, **{"search.scheduler": "asha"}).ema_warnings(60)
    assert "0.9 averages over about 10 steps, and trials may be stopped after 5: 59% of" in line
    assert line.endswith("lower it, or raise search.grace_epochs")


def test_a_trial_is_as_the_search_was_settled(make_config: MakeConfig) -> None:
    plan = planned(make_config, LR, **{"loop.precision": "auto", "run.mirror": "file:///tmp/mirror"})
    config = plan.trial_config(plan.search.trial(1), {"optim.lr": 1e-3})
    assert (config.loop.precision, config.loop.micro_batch) == (plan.one.precision, 12)
    assert config.loop.precision != "auto"
    assert (config.scale.workers, config.scale.cpus_per_worker) == (1, plan.place.scale.threads)
    assert (config.run.name, config.run.mirror) == ("planned-0001", None)
    assert (config.data.split_seed, config.data.evaluate_test, config.data.external) == (7, False, {})
    final = plan.final_config(plan.search.final("0001", 8), {"optim.lr": 1e-3}, seed=8)
    assert (final.run.seed, final.data.split_seed, final.data.evaluate_test) == (8, 7, True)
    assert final.data.external == plan.config.data.external


def test_a_search_that_goes_on_keeps_its_precision_and_its_micro_batch(make_config: MakeConfig) -> None:
    """Whatever the machine that it goes on on would choose; and another choice of the user's is refused."""
    plan = planned(make_config, LR, **{"loop.precision": "auto"})
    begun = {"identity": plan.identity, "precision": "bf16", "micro_batch": 6}
    auto = plan.as_begun(begun)
    for config in (
        auto.trial_config(auto.search.trial(1), {"optim.lr": 1e-3}),
        auto.final_config(auto.search.final("0001", 8), {"optim.lr": 1e-3}, seed=8),
    ):
        assert (config.loop.precision, config.loop.micro_batch) == ("bf16", 6)
    for option, asked, was in (("precision", "fp32", "bf16"), ("micro_batch", 4, 6)):
        plan = planned(make_config, LR, **{"loop.precision": "auto", f"loop.{option}": asked})
        with pytest.raises(UsageError, match=f"loop.{option}: this search was begun with {was}, and {asked} would"):
            plan.as_begun(begun)


def test_what_a_search_settles_is_kept(make_config: MakeConfig) -> None:
    plan, data, _ = make_search_plan(
        make_config(**{"search.space": LR, "search.searcher": "random", "loop.micro_batch": 5}), this_machine()
    )
    settled = plan.description(data)
    assert (settled["precision"], settled["micro_batch"]) == ("fp32", 5)
    val = data.index("val")
    assert (settled["data"]["val_tiles"], settled["data"]["val_groups"]) == (len(val), len(set(val["group"])))


NUMBERS = 2048 * 9 + 9
"""That learn at depth 0: a head of nine classes."""


@pytest.mark.parametrize(
    ("space", "searcher", "numbers"),
    [
        ({"optim.name": {"choice": ["sgd", "adam"]}}, "optuna", 4 * [3 * NUMBERS]),
        ({"optim.name": {"grid": ["sgd", "adam"]}}, "grid", [2 * NUMBERS, *3 * [3 * NUMBERS]]),
        ({"optim.ema": {"choice": [0.0, 0.5]}}, "optuna", 4 * [4 * NUMBERS]),
        ({"optim.ema": {"grid": [0.0, 0.5]}}, "grid", [3 * NUMBERS, *3 * [4 * NUMBERS]]),
        ({"optim.ema": {"uniform": [0.0, 0.5]}, "optim.name": {"choice": ["sgd"]}}, "optuna", 4 * [3 * NUMBERS]),
    ],
    ids=["optimizer", "optimizer-grid", "average", "average-grid", "both"],
)
def test_what_checkpoints_may_take_is_that_of_the_largest(
    make_config: MakeConfig, space: dict[str, Any], searcher: str, numbers: list[int]
) -> None:
    """Two trials and two final runs, with two checkpoints each, of 4 bytes a number."""
    options = {"search.searcher": searcher, "search.trials": 2, "search.final_seeds": 2, "loop.keep": 2}
    assert planned(make_config, space, **options).checkpoints_bytes() == 2 * 4 * sum(numbers)


def test_a_name_that_is_too_long_for_a_final_run_is_refused_before_a_trial_starts(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"trial 0016-seed10: run\.name: .*x-0016-seed10"):
        planned(make_config, LR, **{"run.name": 92 * "x", "search.searcher": "optuna"})
    planned(make_config, LR, **{"run.name": 80 * "x", "search.searcher": "optuna"})


def test_classes_of_external_stores_alone_are_renamed_in_final_runs_alone(
    make_config: MakeConfig, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(stores[1].parent / "external-source", tmp_path / "source")
    (source / "manifest.csv").unlink()
    (source / "ADI").rename(source / "FAT")
    pack(source, tmp_path / "renamed", processes=1)
    class_map = {"FAT": "ADI", "DEB": "TUM"}
    external = {"renamed": str(tmp_path / "renamed")}
    plan = planned(make_config, LR, **{"data.class_map": class_map, "data.external": external})
    trial = plan.trial_config(plan.search.trial(1), {"optim.lr": 1e-3})
    final = plan.final_config(plan.search.final("0001", 8), {"optim.lr": 1e-3}, seed=8)
    assert (trial.data.class_map, final.data.class_map) == ({"DEB": "TUM"}, class_map)
    assert open_data(trial).classes == open_data(final).classes == plan.one.classes
