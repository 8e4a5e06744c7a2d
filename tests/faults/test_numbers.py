"""Numbers that are none: in weights, in options, in the loss, and after steps that are too large."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import MakeConfig, write_config
from tests.faults.ledger import Fault
from tests.processes import train_killed_at
from tests.trainer.test_worker import start
from trainer.__main__ import main
from trainer.checkpoint import find_flaw, listed, read
from trainer.config import SECTIONS, load_config
from trainer.data import open_data
from trainer.errors import UsageError
from trainer.model import HEAD, build
from trainer.plan import Plan
from trainer.rundir import RunDir
from trainer.tiles.order import batch_bounds, epoch_order

NONE = ("nan", "inf", "-inf")
EXPLODING: dict[str, object] = {
    "optim.name": "sgd",
    "optim.momentum": 0.0,
    "optim.lr": 1e4,
    "optim.weight_decay": 1.0,  # each step multiplies the weights by -10,000
    "loop.checkpoint_every": 1,
}
STEPS_OF_AN_EPOCH = 6


def write_weights(file: Path, **changes: float) -> Path:
    """A random ResNet50's weights, with one number changed in each of some tensors."""
    state = {name: tensor for name, tensor in build(2, 0).state_dict().items() if not name.startswith(HEAD)}
    for name, value in changes.items():
        state[name].view(-1)[7] = value
    torch.save(state, file)
    return file


@pytest.mark.fault(12, "NaN and infinity in a file of weights", "refused, naming the tensors; nothing is begun")
def test_weights_that_are_no_numbers_are_refused(
    fault: Fault, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {}))
    for number, bad in enumerate(("layer4.2.bn3.running_var", "conv1.weight")):
        file = write_weights(tmp_path / "weights.pth", **{bad: float(NONE[number])})
        assert main(["train", config, "--debug", "--model.weights", str(file)]) == 2
        assert f"1 not finite: {bad}" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()
        fault.times += 1
    fault.figure = f"{fault.times} of 2 named"


def numbers() -> list[str]:
    """Every option that takes a number with a fraction."""
    fields = {f"{section}.{name}": field for section, fields in SECTIONS.items() for name, field in fields.items()}
    return [key for key, field in fields.items() if "float" in str(field.annotation)]


@pytest.mark.fault(12, "NaN and infinities as every number of a configuration", "refused, naming the option")
def test_options_that_are_no_numbers_are_refused(fault: Fault, stores: tuple[Path, Path], tmp_path: Path) -> None:
    content = yaml.safe_load(write_config(tmp_path / "good.yaml", stores, tmp_path, {}).read_text())
    for key in numbers():
        section, option = key.split(".")
        for bad in NONE:
            for given in (bad, float(bad), [float(bad), 1.0]):
                file = tmp_path / "config.yaml"
                file.write_text(yaml.safe_dump({**content, section: {**content.get(section, {}), option: given}}))
                with pytest.raises(UsageError, match=key):
                    load_config(file)
                fault.times += 1
    assert fault.times > 150
    fault.figure = f"{fault.times} of {fault.times} named"


@pytest.mark.fault(12, "weights too large for the features to be finite", "stops, names step and tiles; no checkpoint")
def test_a_loss_that_is_no_number_names_step_and_tiles(
    fault: Fault, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_weights(tmp_path / "weights.pth", **{"layer4.2.bn3.weight": 1e38, "layer3.0.bn3.weight": 1e38})
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {"model.weights": str(file)})
    run = RunDir(tmp_path / "runs" / "small")
    assert main(["train", str(config), "--debug"]) == 1
    said = capsys.readouterr().err
    assert "training diverged at step 1 (epoch 1): the loss is" in said
    assert f"The 12 tiles that it learned from last are listed in {run.diverged_file}" in said
    assert len(json.loads(run.diverged_file.read_text())["tiles"]) == 12
    assert not listed(run)
    assert not run.best_file.exists()
    fault.times, fault.figure = 1, "step 1 and its 12 tiles named; 0 checkpoints"


@pytest.mark.fault(12, "a learning rate that explodes in the second epoch", "")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_exploding_learning_rate_leaves_the_best_checkpoint(
    fault: Fault, make_config: MakeConfig, workers: int
) -> None:
    fault.injected += f" ({workers} worker{'s' * (workers > 1)})"
    fault.promise = "stops, names step and tiles; every checkpoint finite; best untouched"
    plan = start(make_config(**EXPLODING, **{"scale.workers": workers}))
    outcome = train_killed_at(plan, None)
    assert outcome is not None
    assert outcome.status == "diverged"
    assert str(plan.run.diverged_file) in outcome.message
    said = json.loads(plan.run.diverged_file.read_text())
    assert f"at step {said['step']} (epoch 2)" in outcome.message
    assert said["step"] > STEPS_OF_AN_EPOCH
    assert [tile["tile_id"] for tile in said["tiles"]] == tiles_of_step(plan, said["step"])
    for checkpoint in listed(plan.run):
        assert find_flaw(checkpoint) is None
        assert checkpoint.step < said["step"]
        assert all(tensor.isfinite().all() for tensor in read(checkpoint)[0].values())
    (epoch,) = plan.run.read_metrics()
    best = json.loads(plan.run.best_file.read_text())
    assert (best["epoch"], best["step"], best["value"]) == (1, STEPS_OF_AN_EPOCH, epoch[best["metric"]])
    assert best["checkpoint"] in [checkpoint.path.name for checkpoint in listed(plan.run)]
    fault.times = 1
    fault.figure = f"step {said['step']} and its {len(said['tiles'])} tiles named; best is of epoch 1, as before"


def tiles_of_step(plan: Plan, step: int) -> list[str]:
    """The tiles of a step of the second epoch, by the rule that the design states."""
    index = open_data(plan.config, plan.run.split_file).index("train")
    start, end = batch_bounds(len(index), plan.config.loop.batch_size)[step - STEPS_OF_AN_EPOCH - 1]
    return list(index["tile_id"].iloc[epoch_order(len(index), plan.config.run.seed, 1)[start:end]])
