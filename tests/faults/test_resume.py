"""A run that is taken up again as something else than it was, or by other workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import MakeConfig, make_stores, write_config
from tests.faults.ledger import Fault
from tests.processes import train_killed_at
from tests.trainer.test_worker import STEPS, start
from trainer.__main__ import main
from trainer.checkpoint import listed, read
from trainer.config import IDENTITY_FIELDS, load_config
from trainer.errors import UsageError
from trainer.plan import Plan, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import RunDir
from trainer.scale import this_machine
from trainer.weights import load_base
from trainer.worker import work

TOLERANCE = 1e-5
OTHER: dict[str, list[str]] = {
    "run.seed": ["8"],
    "data.split": ["random"],
    "data.split_seed": ["3"],
    "data.val_fraction": ["0.5"],
    "data.test_fraction": ["0.3"],
    "data.class_map": ['{"TUM": "STR"}'],
    "augment.crop_scale": ["[0.5, 1.0]"],
    "augment.crop_ratio": ["[0.9, 1.1]"],
    "augment.hflip": ["0.1"],
    "augment.vflip": ["0.1"],
    "augment.rot90": ["true"],
    "augment.brightness": ["0.1"],
    "augment.contrast": ["0.1"],
    "augment.saturation": ["0.1"],
    "augment.hue": ["0.1"],
    "augment.stain": ["0.1"],
    "augment.input_size": ["64"],
    "augment.eval_resize": ["40", "--augment.eval_crop", "32"],
    "augment.eval_crop": ["32", "--augment.eval_resize", "40"],
    "model.unfrozen_depth": ["1"],
    "model.norm": ["frozen"],
    "optim.name": ["adamw"],
    "optim.lr": ["0.01"],
    "optim.momentum": ["0.5", "--optim.name", "sgd"],
    "optim.weight_decay": ["0.1"],
    "optim.layer_decay": ["0.5"],
    "optim.schedule": ["cosine"],
    "optim.warmup_epochs": ["1"],
    "optim.clip_norm": ["1"],
    "optim.label_smoothing": ["0.1"],
    "optim.class_weights": ["balanced"],
    "optim.ema": ["0.5"],
    "loop.epochs": ["4"],
    "loop.batch_size": ["10"],
    "loop.best_metric": ["val/loss"],
}
"""Another value of each option that makes a run what it is."""


@pytest.fixture(scope="module")
def begun(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("begun")
    options: dict[str, object] = {"scale.workers": 1, "loop.epochs": 3}
    config = write_config(folder / "config.yaml", stores, folder / "runs", options)
    plan = start(load_config(config))
    assert work(plan, Ranks(), lambda message: message.get("epoch", 0) > 1).status == "stopped"
    return config


def contents(config: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file of the storage beside a configuration, and when it was written."""
    files = [file for file in (config.parent / "runs").rglob("*") if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.mark.fault(19, "resumed with other tiles, another external set, other classes, another seed", "")
def test_another_run_of_that_name_is_refused(
    fault: Fault, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.promise = "the command is refused, naming the field; nothing is touched"
    made = make_stores(tmp_path, seed=4)
    before = contents(begun)
    for field, value in {
        "data.tiles": str(made[0]),
        "data.external.elsewhere": json.dumps({"elsewhere": str(made[1])}),
        "classes": OTHER["data.class_map"][0],
        "run.seed": "8",
    }.items():
        flag = {"data.external.elsewhere": "data.external", "classes": "data.class_map"}.get(field, field)
        assert main(["train", str(begun), "--debug", f"--{flag}", value]) == 2
        assert f"  {field}: was " in capsys.readouterr().err
        fault.times += 1
    assert contents(begun) == before
    fault.figure = f"{fault.times} of {fault.times} named, no file changed"


@pytest.mark.fault(19, "resumed with another value of each option that is part of a run's identity", "")
def test_every_option_that_makes_another_run_is_refused(fault: Fault, begun: Path) -> None:
    fault.promise = "refused, naming the option; nothing is touched"
    assert set(OTHER) == set(IDENTITY_FIELDS) - {"model.arch"}, "every option has another value here, if it can"
    base, before = load_base("random", 7), contents(begun)
    for field, flags in OTHER.items():
        config = load_config(begun, [f"--{field}", *flags])
        plan, data, _ = make_plan(config, this_machine(), base=base)
        with pytest.raises(UsageError, match=rf"\n  {field}: (.*: )?was "):
            write_run(plan, data, base)
        fault.times += 1
    assert contents(begun) == before
    fault.figure = f"{fault.times} of {fault.times} named, no file changed"


@pytest.mark.slow
@pytest.mark.fault(19, "killed, and taken up by another number of workers", "")
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_other_workers_go_on_in_the_same_order(fault: Fault, make_config: MakeConfig, first: int, then: int) -> None:
    """Layer4 learns, so that another tile at any step would be seen in the weights."""
    fault.injected += f" ({first}, then {then})"
    fault.promise = f"goes on, in the same order; weights differ by at most {TOLERANCE:g} of the largest"
    options = {"model.unfrozen_depth": 1, "model.norm": "frozen", "loop.checkpoint_every": 1, "scale.workers": first}
    alone = start(make_config(**options, **{"run.name": "alone"}))
    assert train_killed_at(alone, None).status == "done"
    plan = start(make_config(**options))
    assert train_killed_at(plan, STEPS // 2) is None
    resumed = start(make_config(**{**options, "scale.workers": then}))
    assert resumed.micro_batch == plan.micro_batch
    assert train_killed_at(resumed, None).status == "done"
    assert [record["workers"] for record in plan.run.attempts().values()] == [first, then]
    found = difference(alone, plan)
    assert found <= TOLERANCE
    fault.times, fault.figure = 1, f"they differ by {found:.0e}"


def difference(one: Plan, other: Plan) -> float:
    """The largest difference between final weights, as a share of the largest weight of the tensor."""
    ends = [final(RunDir(plan.run.path)) for plan in (one, other)]
    shares = [(ends[0][name] - ends[1][name]).abs().max() / ends[0][name].abs().max() for name in ends[0]]
    return float(torch.stack([share for share in shares if share.isfinite()]).max())


def final(run: RunDir) -> dict[str, torch.Tensor]:
    newest = listed(run)[0]
    assert newest.step == STEPS
    return {name: tensor for name, tensor in read(newest)[0].items() if tensor.is_floating_point()}
