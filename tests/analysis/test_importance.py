import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from analysis.fields import fields
from analysis.importance import Importance, importance
from analysis.search import read_search
from tests.analysis.made_searches import write_search, write_trial

SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "model.unfrozen_depth": {"choice": [0, 1, 2, 3]},
    "optim.name": {"choice": ["adam", "sgd"]},
}


def searched(path: Path, score: Any, trials: int = 40, space: dict[str, Any] = SPACE) -> Importance | str:
    """The importance in a search whose scores are a function of its fields."""
    rng = np.random.default_rng(0)
    search = write_search(path, space=space)
    for number in range(1, trials + 1):
        drawn = {
            "optim.lr": float(10 ** rng.uniform(-5, -2)),
            "model.unfrozen_depth": int(rng.integers(4)),
            "optim.name": ("adam", "sgd")[rng.integers(2)],
        }
        parameters = {key: drawn[key] for key in space}
        status = "stopped" if number % 4 == 0 else "done"
        write_trial(search, number, parameters, values=(score(parameters),), status=status, tiles=6)
    read = read_search(search.path)
    return importance(read, fields(read.space))


@pytest.mark.parametrize(
    ("field", "score"),
    [
        ("lr", lambda given: 0.9 + 0.1 * math.log10(given["optim.lr"])),
        ("unfrozen_depth", lambda given: 0.5 + 0.1 * given["model.unfrozen_depth"]),
        ("name", lambda given: 0.5 + 0.3 * (given["optim.name"] == "sgd")),
    ],
)
def test_the_field_that_alone_decides_explains_nearly_all(tmp_path: Path, field: str, score: Any) -> None:
    found = searched(tmp_path / "s", score)
    assert isinstance(found, Importance)
    assert next(iter(found.shares)) == field
    assert found.shares[field] > 0.9
    assert (found.trials, found.stopped, found.is_guess) == (40, 10, False)


def test_what_only_two_fields_together_decide_is_left_over(tmp_path: Path) -> None:
    def either(given: dict[str, Any]) -> float:
        return 0.4 + 0.5 * ((given["optim.name"] == "sgd") != (given["model.unfrozen_depth"] > 1))

    found = searched(tmp_path / "s", either)
    assert isinstance(found, Importance)
    assert sum(found.shares.values()) < 0.5


def test_it_is_optunas_on_the_axes_of_the_fields(tmp_path: Path) -> None:
    """Against a study with Optuna's own distributions of the logarithm."""
    space = {key: SPACE[key] for key in ("optim.lr", "model.unfrozen_depth")}
    found = searched(tmp_path / "s", lambda given: 0.9 + 0.1 * math.log10(given["optim.lr"]), 20, space)
    rng = np.random.default_rng(0)
    study = optuna.create_study()
    depths = optuna.distributions.IntDistribution(0, 3)
    rates = optuna.distributions.FloatDistribution(-5, -2)
    for _ in range(20):
        rate, depth, _ = rng.uniform(-5, -2), int(rng.integers(4)), rng.integers(2)
        parameters = {"model.unfrozen_depth": depth, "optim.lr": float(np.log10(10**rate))}
        both = {"model.unfrozen_depth": depths, "optim.lr": rates}
        value = 0.9 + 0.1 * math.log10(10**rate)
        study.add_trial(optuna.create_trial(params=parameters, distributions=both, value=value))
    expected = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    assert isinstance(found, Importance)
    assert found.shares["lr"] == pytest.approx(expected["optim.lr"], rel=1e-6)
    assert found.shares["unfrozen_depth"] == pytest.approx(expected["model.unfrozen_depth"], abs=1e-6)


def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    assert "there are 3" in str(searched(tmp_path / "few", lambda given: given["optim.lr"], trials=3))
    assert "same score" in str(searched(tmp_path / "same", lambda _: 0.5))
    one = {"optim.lr": SPACE["optim.lr"]}
    assert "one field" in str(searched(tmp_path / "one", lambda given: given["optim.lr"], space=one))
    fixed = {"optim.name": {"choice": ["adam"]}, "model.unfrozen_depth": {"choice": [2]}}
    search = write_search(tmp_path / "fixed", space=fixed)
    for number in range(1, 9):
        write_trial(search, number, {"optim.name": "adam", "model.unfrozen_depth": 2}, values=(number / 10,), tiles=6)
    read = read_search(search.path)
    assert isinstance(importance(read, fields(read.space)), (str, Importance))
