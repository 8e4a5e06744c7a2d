"""Optimizers against their formulas by hand, schedules against theirs and torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from trainer.config import Config, OptimSection
from trainer.model import build, cut
from trainer.optim import lr_factor, make_optimizer, make_schedule, parameter_groups

TILES, BATCH = 100, 10  # ten steps an epoch


def make_config(epochs: int = 3, **optim: object) -> Config:
    loop = {"epochs": epochs, "batch_size": BATCH}
    return Config.model_validate({"data": {"tiles": "unused"}, "loop": loop, "optim": {"lr": 0.01, **optim}})


def by_name(learning: nn.Module, optim: OptimSection, option: str) -> dict[str, float]:
    """An option of each parameter's group."""
    names = {parameter: name for name, parameter in learning.named_parameters()}
    groups = parameter_groups(learning, optim)
    found = [(names[parameter], group[option]) for group in groups for parameter in group["params"]]
    assert len(found) == len(names), "each parameter is in one group"
    return dict(found)


def test_at_the_defaults_there_is_one_group_in_the_order_of_the_network() -> None:
    """As it was before there were groups: what an older checkpoint holds still fits."""
    learning = cut(build(3, 0), 2)[1]
    (group,) = parameter_groups(learning, OptimSection())
    assert all(a is b for a, b in zip(group["params"], learning.parameters(), strict=True))
    older = torch.optim.Adam(learning.parameters(), lr=0.5, fused=True)
    make_optimizer(learning, OptimSection()).load_state_dict(older.state_dict())


def test_norms_and_biases_do_not_decay() -> None:
    learning = cut(build(3, 0), 5)[1]
    decays = by_name(learning, OptimSection(weight_decay=0.1), "weight_decay")
    kinds = {name: module for name, module in learning.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {name for name, decay in decays.items() if decay} == {f"{name}.weight" for name in kinds}
    assert set(decays.values()) == {0.0, 0.1}


def test_each_stage_learns_at_a_share_of_the_rate_of_the_one_above() -> None:
    rates = by_name(cut(build(3, 0), 5)[1], OptimSection(lr=1.0, layer_decay=0.5, weight_decay=0.1), "lr")
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625, "conv1": 0.03125}
    expected["bn1"] = expected["conv1"]
    assert rates == {name: expected[name.split(".")[0]] for name in rates}


def test_the_last_group_is_the_heads() -> None:
    learning = cut(build(3, 0), 3)[1]
    optimizer = make_optimizer(learning, OptimSection(lr=0.3, layer_decay=0.5, weight_decay=0.1))
    assert optimizer.param_groups[-1]["lr"] == 0.3
    assert optimizer.param_groups[-1]["params"][-1] is learning.get_parameter("fc.bias")


def adam(weight: Any, grads: list[Any], lr: float, decay: float, decoupled: bool) -> Any:
    """Kingma & Ba 2015, algorithm 1; with decoupled decay Loshchilov & Hutter 2019, algorithm 2."""
    first = second = 0.0
    for step, given_grad in enumerate(grads, 1):
        grad = given_grad if decoupled else given_grad + decay * weight
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight - lr * move - (lr * decay * weight if decoupled else 0.0)
    return weight


def sgd(weight: Any, grads: list[Any], lr: float, decay: float, momentum: float) -> Any:
    """Momentum as Sutskever et al. 2013 have it in torch's form: the rate multiplies the whole velocity."""
    velocity = 0.0
    for grad in grads:
        velocity = momentum * velocity + grad + decay * weight
        weight = weight - lr * velocity
    return weight


OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "adam": ({"name": "adam"}, lambda *a: adam(*a, decoupled=False)),
    "adamw": ({"name": "adamw"}, lambda *a: adam(*a, decoupled=True)),
    "sgd": ({"name": "sgd"}, lambda *a: sgd(*a, momentum=0.9)),
    "plain sgd": ({"name": "sgd", "momentum": 0.0}, lambda *a: sgd(*a, momentum=0.0)),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_optimizers_are_their_formulas(kind: str, decay: float) -> None:
    options, formula = OPTIMIZERS[kind]
    learning = nn.Sequential()
    learning.add_module("layer4", nn.Conv2d(2, 3, 3))
    learning.add_module("fc", nn.Linear(3, 2))
    before = {name: p.detach().double().clone() for name, p in learning.named_parameters()}
    optim = OptimSection(lr=0.02, weight_decay=decay, layer_decay=0.5, **options)
    optimizer = make_optimizer(learning, optim)
    torch.manual_seed(0)
    grads = [{name: torch.randn_like(p) for name, p in learning.named_parameters()} for _ in range(5)]
    for step in grads:
        for name, parameter in learning.named_parameters():
            parameter.grad = step[name]
        optimizer.step()
    for name, parameter in learning.named_parameters():
        lr = 0.02 if name.startswith("fc") else 0.01
        mine = decay if name.endswith("weight") else 0.0
        expected = formula(before[name], [step[name].double() for step in grads], lr, mine)
        assert torch.allclose(parameter.detach().double(), expected, atol=1e-6), name


def rates(config: Config, depth: int = 0) -> list[list[float]]:
    """The learning rate of each group in each step of a run."""
    optimizer = make_optimizer(cut(build(2, 0), depth)[1], config.optim)
    schedule = make_schedule(optimizer, config, TILES)
    found = []
    for _ in range(config.loop.epochs * TILES // BATCH):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def reference(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float = 0.01) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_is_torchs() -> None:
    expected = reference(lambda optimizer: CosineAnnealingLR(optimizer, T_max=30), 30)
    assert [rate for (rate,) in rates(make_config(schedule="cosine"))] == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, within its SequentialLR
def test_cosine_with_warm_up_is_torchs_linear_then_cosine() -> None:
    """Half an epoch and one: five steps up, then down over the other 25."""

    def make(optimizer: torch.optim.Optimizer) -> Any:
        up = LinearLR(optimizer, start_factor=1 / 5, end_factor=1.0, total_iters=4)
        return SequentialLR(optimizer, [up, CosineAnnealingLR(optimizer, T_max=25)], milestones=[5])

    found = rates(make_config(schedule="cosine", warmup_epochs=0.5))
    assert [rate for (rate,) in found] == pytest.approx(reference(make, 30), abs=1e-9)


def test_constant_with_warm_up_rises_and_stays() -> None:
    found = [rate for (rate,) in rates(make_config(warmup_epochs=1))]
    assert found == pytest.approx([0.01 * min(1, (step + 1) / 10) for step in range(30)])


def test_onecycle_is_torchs_for_every_stage() -> None:
    found = rates(make_config(schedule="onecycle", layer_decay=0.5), depth=1)
    for column, lr in ((-1, 0.01), (0, 0.005)):
        expected = reference(lambda optimizer, lr=lr: OneCycleLR(optimizer, max_lr=lr, total_steps=30), 30, lr)
        assert [row[column] for row in found] == pytest.approx(expected)


def test_stages_keep_their_shares_along_the_schedule() -> None:
    for row in rates(make_config(schedule="cosine", warmup_epochs=1, layer_decay=0.5), depth=2):
        assert row == pytest.approx([row[-1] / 4, row[-1] / 2, row[-1]])


@given(st.integers(0, 50), st.integers(1, 200))
def test_the_rate_rises_to_its_maximum_and_falls_to_nothing(warm_up: int, rest: int) -> None:
    end = warm_up + rest
    up = [lr_factor(step, warm_up, end) for step in range(warm_up)]
    down = [lr_factor(step, warm_up, end) for step in range(warm_up, end + 1)]
    assert up == sorted(up)
    assert all(0 < factor <= 1 for factor in up)
    assert down == sorted(down, reverse=True)
    assert down[0] == 1
    assert math.isclose(down[-1], 0, abs_tol=1e-12)
    assert not up or up[-1] == 1


def test_a_warm_up_in_a_run_of_one_step_does_nothing() -> None:
    config = make_config(epochs=1, schedule="cosine", warmup_epochs=0.9)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = make_schedule(optimizer, config, tiles=3)
    assert optimizer.param_groups[0]["lr"] == 0.01
    optimizer.step()
    schedule.step()


def test_a_schedule_goes_on_where_it_was() -> None:
    config = make_config(schedule="cosine", warmup_epochs=1, layer_decay=0.5)
    learning = cut(build(2, 0), 1)[1]
    expected = rates(config, depth=1)
    optimizer = make_optimizer(learning, config.optim)
    schedule = make_schedule(optimizer, config, TILES)
    for _ in range(17):
        optimizer.step()
        schedule.step()
    states = optimizer.state_dict(), schedule.state_dict()
    optimizer = make_optimizer(learning, config.optim)
    schedule = make_schedule(optimizer, config, TILES)
    optimizer.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    assert [group["lr"] for group in optimizer.param_groups] == expected[17]
