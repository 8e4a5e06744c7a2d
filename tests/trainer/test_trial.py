"""A trial of a search on a node that has less than the driver's; without Ray, which only calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import MakeConfig
from trainer.checkpoint import store_base
from trainer.config import dump
from trainer.errors import RunError
from trainer.group import umask
from trainer.ledger import Ledger
from trainer.model import build
from trainer.rundir import RunDir, read_json, write_json
from trainer.scale import this_machine
from trainer.search_plan import make_search_plan
from trainer.trial import Trial

PARAMETERS = {"optim.lr": 1e-3}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of starting weights."""
    save_file(build(2, 5).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def run(make_config: MakeConfig, weights: Path) -> RunDir:
    """The run directory of a trial that starts from those, as the driver leaves it for a node."""
    options = {"search.space": {"optim.lr": {"choice": [1e-3]}}, "search.searcher": "random", "search.trials": 1}
    config = make_config(**{**options, "model.weights": str(weights)})
    plan, data, base = make_search_plan(config, this_machine())
    run = plan.search.trial(1)
    Ledger(plan.metric, plan.mode, check=lambda: None).add(run, plan.record(run, run.name, 1, PARAMETERS))
    write_json(plan.search.search_file, plan.description(data))
    store_base(run, base.sha256, base.data)
    run.config_file.write_text(dump(plan.trial_config(run, PARAMETERS)))
    return run


def trial_of(run: RunDir) -> Trial:
    trial = object.__new__(Trial)  # Ray's own beginning belongs to its processes
    config = {"runs": [str(run.path)], "trials": [run.name], "metric": "val/balanced_accuracy"}
    trial.setup(config, machine=this_machine(), board=None, umask=umask())
    return trial


def test_its_starting_weights_are_those_that_the_search_keeps(run: RunDir, weights: Path) -> None:
    expected = read_json(run.path.parents[1] / "search.json")["identity"]["model.weights"]
    weights.unlink()
    plan, finished = trial_of(run)._plan(run, [])
    assert (plan.base_sha256, finished) == (expected, False)
    assert run.read_identity()["identity"]["model.weights"] == expected


def test_what_this_node_lacks_is_no_end_of_the_trial(run: RunDir) -> None:
    """It breaks, as for any other reason that a next start may not have, and Tune starts it again."""
    run.config_file.write_text(run.config_file.read_text().replace("tiles: /", "tiles: /not-mounted/"))
    trial = trial_of(run)
    told = trial.step()
    assert (told["trial"], told["status"]) == (run.name, "broken")
    assert "data.tiles: " in told["message"]
    assert "not-mounted" in told["message"]
    with pytest.raises(RunError):
        trial.step()
    assert read_json(run.trial_file)["status"] == "waiting"
