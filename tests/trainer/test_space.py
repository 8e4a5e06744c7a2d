"""What a search may vary, what it proposes, and every way to write that down wrongly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.config import flatten, load_config, with_options
from trainer.errors import UsageError
from trainer.searchers import GridSearch, RandomSearch, Tpe
from trainer.space import Interval, Space

EVERY_KIND: dict[str, dict[str, Any]] = {
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "augment.hflip": {"uniform": [0.1, 0.9]},
    "augment.vflip": {"quniform": [0.0, 1.0, 0.3]},
    "augment.contrast": {"qloguniform": [0.01, 0.5, 0.01]},
    "model.unfrozen_depth": {"randint": [0, 3]},
    "loop.batch_size": {"qrandint": [32, 128, 32]},
    "optim.schedule": {"choice": ["constant", "onecycle"]},
    "augment.crop_scale": {"choice": [[0.5, 1.0], [1.0, 1.0]]},
}


def draw(written: dict[str, Any], times: int) -> list[Any]:
    search = RandomSearch(Space.read({"optim.lr": written}), seed=1)
    return [search.propose(number)["optim.lr"] for number in range(1, times + 1)]


def written_config(folder: Path, search: dict[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"data": {"tiles": "store"}, "search": search}))
    return file


def test_each_kind_is_drawn_as_it_says() -> None:
    """Against scipy's distributions: uniform, and uniform in the logarithm."""
    assert stats.kstest(draw({"uniform": [2, 5]}, 500), stats.uniform(2, 3).cdf).pvalue > 0.001
    assert stats.kstest(draw({"loguniform": [1e-5, 1e-2]}, 500), stats.loguniform(1e-5, 1e-2).cdf).pvalue > 0.001
    for written, values in (
        ({"randint": [0, 3]}, [0, 1, 2, 3]),
        ({"quniform": [0, 1, 0.3]}, [0.0, 0.3, 0.6, 0.9]),
        ({"qrandint": [32, 128, 32]}, [32, 64, 96, 128]),
        ({"choice": ["a", "b"]}, ["a", "b"]),
    ):
        found = draw(written, 400)
        assert sorted(set(found)) == values
        assert stats.chisquare([found.count(value) for value in values]).pvalue > 0.001
        assert {type(value) for value in found} == {type(value) for value in values}


@given(
    low=st.floats(1e-6, 1e3),
    width=st.floats(1e-3, 1e3),
    steps=st.integers(1, 50),
    log=st.booleans(),
    seed=st.integers(0),
)
def test_no_draw_leaves_its_interval_or_its_steps(low: float, width: float, steps: int, log: bool, seed: int) -> None:
    step = width / steps
    value = Interval(low, low + width, step, log, whole=False).sample(np.random.default_rng(seed))
    assert low * (1 - 1e-9) <= value <= (low + width) * (1 + 1e-9)
    place = (value - low) / step
    digits = 1e-11 * (low + width) / step  # values are written with twelve
    assert place == pytest.approx(round(place), abs=1e-6 + digits)


def test_a_random_search_is_a_function_of_seed_and_number() -> None:
    space = Space.read(EVERY_KIND)
    first, again, other = (RandomSearch(space, seed) for seed in (3, 3, 4))
    backwards = [again.propose(number) for number in range(20, 0, -1)][::-1]
    assert [first.propose(number) for number in range(1, 21)] == backwards
    assert other.propose(1) != first.propose(1)


def test_a_grid_is_every_combination_once() -> None:
    grid = GridSearch(Space.read({"b": {"grid": [1, 2, 3]}, "a": {"choice": ["x", "y"]}}))
    found = [tuple(grid.propose(number).items()) for number in range(1, len(grid) + 1)]
    assert len(set(found)) == len(found) == 6
    assert set(found) == {(("a", a), ("b", b)) for a in "xy" for b in (1, 2, 3)}


def test_tpe_comes_nearer_than_chance() -> None:
    """A smooth function of one number, best at 1e-3; the mean of the last third, over 10 seeds."""
    space = Space.read({"optim.lr": {"loguniform": [1e-6, 1.0]}, "model.unfrozen_depth": {"choice": [0, 1]}})

    def far(search: Any) -> float:
        found = []
        for number in range(1, 31):
            parameters = search.propose(number)
            found.append(abs(math.log10(parameters["optim.lr"]) + 3) + parameters["model.unfrozen_depth"])
            search.learn(number, [-found[-1]], "done")
        return float(np.mean(found[20:]))

    tpe = np.mean([far(Tpe(space, seed, "max")) for seed in range(10)])
    chance = np.mean([far(RandomSearch(space, seed)) for seed in range(10)])
    assert tpe < 0.7 * chance


@pytest.mark.parametrize("mode", ["max", "min"])
def test_tpe_learns_the_same_from_trials_of_an_earlier_start(mode: str) -> None:
    """Whether asked or taken in: from trials of every end, and beside one that still runs, it proposes the same."""
    space = Space.read(EVERY_KIND)
    asked, taken_in = Tpe(space, 0, mode), Tpe(space, 0, mode, known=21)
    for number in range(1, 22):
        parameters = asked.propose(number)
        taken_in.take_in(number, parameters)
        status = ["done", "stopped", "diverged", "failed"][number % 4]
        values = [] if status == "diverged" else [parameters["augment.hflip"], parameters["augment.hflip"] / 2]
        for tpe in (asked, taken_in) if number < 21 else ():
            tpe.learn(number, values, status)
    config = load_config_of_every_kind()
    asked._study.sampler = Tpe(space, 0, mode, known=21)._study.sampler  # as if it had not drawn before
    for number in range(22, 26):
        proposed = asked.propose(number)
        found = taken_in.propose(number)
        for key, value in proposed.items():  # parameters are rounded, so what is taken in is not what was drawn
            assert found[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
        with_options(config, proposed, "here")


def test_a_restarted_tpe_does_not_propose_what_still_runs() -> None:
    """Two trials began, and none ended, before a kill: the next two are new places."""
    space = Space.read({"optim.lr": {"loguniform": [1e-6, 1.0]}})
    first = Tpe(space, 0, "max")
    begun = [first.propose(number) for number in (1, 2)]
    again = Tpe(space, 0, "max", known=2)
    for number, parameters in enumerate(begun, 1):
        again.take_in(number, parameters)
    assert not any(again.propose(number) in begun for number in (3, 4))


def test_tpe_stays_away_from_places_that_still_run() -> None:
    """Of an earlier start's too (constant_liar): the nearest of 20 proposals, over 10 seeds."""
    space = Space.read({"optim.weight_decay": {"uniform": [0.0, 1.0]}})

    def near(seed: int, *, running: bool) -> int:
        tpe = Tpe(space, seed, "max", known=31)
        for number, place in enumerate(np.linspace(0, 1, 21), 1):
            tpe.take_in(number, {"optim.weight_decay": float(place)})
            tpe.learn(number, [1 - abs(place - 0.5)], "done")
        for number in range(22, 32) if running else ():
            tpe.take_in(number, {"optim.weight_decay": 0.5})
        return sum(abs(tpe.propose(number)["optim.weight_decay"] - 0.5) < 0.03 for number in range(32, 37))

    assert sum(near(seed, running=True) for seed in range(10)) < sum(near(seed, running=False) for seed in range(10))


def test_tpe_takes_no_failure_for_a_bad_place() -> None:
    """Where half of the good places fail, as for want of a disk, it searches as it does without the failures."""
    space = Space.read({"optim.weight_decay": {"uniform": [0.0, 1.0]}})
    without, beside = Tpe(space, 0, "max", known=40), Tpe(space, 0, "max", known=40)
    for number, place in enumerate(np.linspace(0, 1, 20), 1):
        for tpe in (without, beside):
            tpe.take_in(number, {"optim.weight_decay": float(place)})
            tpe.learn(number, [1 - abs(place - 0.5)], "done")
        beside.take_in(20 + number, {"optim.weight_decay": float(0.4 + place / 5)})
        beside.learn(20 + number, [], "failed")
    assert [without.propose(41) for _ in range(5)] == [beside.propose(41) for _ in range(5)]


def load_config_of_every_kind() -> Any:
    from trainer.config import Config

    return Config.model_validate({"data": {"tiles": "store"}})


def test_all_kinds_are_accepted(tmp_path: Path) -> None:
    config = load_config(written_config(tmp_path, {"space": EVERY_KIND}))
    space = Space.read(config.search.space)
    for number in range(1, 30):
        parameters = RandomSearch(space, 0).propose(number)
        options = flatten(with_options(config, parameters, "here").model_dump(mode="json"))
        assert {key: options[key] for key in parameters} == parameters


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("optim.lx", {"uniform": [0, 1]}, "optim.lx: there is no such option; did you mean optim.lr?"),
        ("lr", {"uniform": [0, 1]}, "lr: there is no such option; did you mean optim.lr?"),
        ("optim", {"choice": [1]}, "optim: is a section; name one of its options: "),
        ("run.storage", {"choice": ["a"]}, "run.storage: is the same for all trials"),
        ("data.val_fraction", {"uniform": [0.1, 0.2]}, "data.val_fraction: is the same for all trials"),
        ("loop.best_metric", {"choice": ["val/loss"]}, "loop.best_metric: is the same for all trials"),
        ("optim.lr", [1e-4, 1e-3], "optim.lr: should be {kind: [...]} with one of uniform, loguniform"),
        ("optim.lr", {"normal": [1e-4, 1e-3]}, "normal: is no kind of values: uniform, loguniform, randint,"),
        ("optim.lr", {"loguniforn": [1e-4, 1e-3]}, "loguniforn: is no kind of values; did you mean loguniform?"),
        ("optim.lr", {"uniform": [1e-4]}, "optim.lr: uniform: should be [low, high], all numbers"),
        ("optim.lr", {"quniform": [0.1, 0.2]}, "optim.lr: quniform: should be [low, high, step]"),
        ("optim.lr", {"uniform": [0.2, 0.1]}, "optim.lr: uniform: low must be less than high"),
        ("optim.lr", {"loguniform": [0, 0.1]}, "optim.lr: loguniform: low must be above 0"),
        ("optim.lr", {"quniform": [0.1, 0.2, 0.5]}, "quniform: step must be above 0 and at most high - low"),
        ("optim.lr", {"uniform": ["a", "b"]}, "optim.lr: uniform: should be [low, high], all numbers"),
        ("optim.lr", {"uniform": [-1, 1]}, "optim.lr: should be greater than 0 (given: -1.0)"),
        ("optim.lr", {"choice": []}, "optim.lr: choice: should be a list of values"),
        ("optim.lr", {"choice": "ab"}, "optim.lr: choice: should be a list of values"),
        ("optim.lr", {"choice": [0.1, 0.1]}, "optim.lr: choice: 0.1 is there twice"),
        ("optim.lr", {"choice": [0.1, "fast"]}, "optim.lr: should be a number (given: 'fast')"),
        ("optim.lr", {"grid": [0.1]}, "optim.lr: grid needs search.searcher: grid"),
        ("model.unfrozen_depth", {"uniform": [0, 3]}, "model.unfrozen_depth: should be a whole number"),
        ("model.unfrozen_depth", {"randint": [0, 9]}, "model.unfrozen_depth: should be less than or equal to 5"),
        ("model.unfrozen_depth", {"randint": [0, 1.5]}, "model.unfrozen_depth: randint: takes whole numbers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_space_is_refused_in_plain_words(tmp_path: Path, key: str, values: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(written_config(tmp_path, {"space": {key: values}}))
    (problem,) = error.value.args
    assert problem.startswith(f"{tmp_path}/config.yaml: search.space: ")
    assert words in problem


def test_everything_wrong_is_said_at_once_and_where(tmp_path: Path) -> None:
    file = written_config(tmp_path, {"space": {"optim.lr": {"uniform": [2, 1]}, "x": {"choice": [1]}}, "trials": 0})
    with pytest.raises(UsageError) as error:
        load_config(file, ["--loop.epochs", "0"])
    assert len(error.value.args) == 4
    with pytest.raises(UsageError, match=r"command line: search.space: optim\.lr: grid needs"):
        load_config(file, ["--search.trials", "1", "--search.space", '{"optim.lr": {"grid": [0.1]}}'])
    with pytest.raises(UsageError, match="a grid needs given values"):
        load_config(written_config(tmp_path, {"searcher": "grid"}))
    with pytest.raises(UsageError, match="is empty"):
        load_config(written_config(tmp_path, {"space": {}}))
