"""The peer is the loop that it claims to be, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from benchmarks.seed_loop import make_learner, measure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "AB"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return tmp_path


def test_it_measures_a_rate(folder: Path) -> None:
    assert measure(folder, depth=0, steps=1, batch_size=2) > 0


@pytest.mark.parametrize(("depth", "learning"), [(0, {"fc.weight", "fc.bias"}), (5, None)])
def test_what_learns(depth: int, learning: set[str] | None) -> None:
    model, optimizer = make_learner(9, depth)
    everything = dict(model.named_parameters())
    expected = learning or set(everything)
    assert {name for name, parameter in everything.items() if parameter.requires_grad} == expected
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(everything[name]) for name in expected}
    assert isinstance(model.fc, nn.Linear)
    assert model.fc.out_features == 9
