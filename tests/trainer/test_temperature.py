from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax as scipy_softmax

from trainer.temperature import fit_temperature, softmax


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_it_is_what_a_library_minimiser_finds(sharpness: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 5))
    labels = np.array([generator.choice(5, p=p) for p in torch.tensor(logits).softmax(1).numpy()])
    logits *= sharpness
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], lr=0.5, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(torch.tensor(logits) / scale.exp(), torch.tensor(labels))
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(logits, labels) == pytest.approx(scale.exp().item(), rel=1e-5)


def test_nothing_changes_where_there_is_no_best_one() -> None:
    logits, right = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    assert fit_temperature(logits, right) == 1
    assert fit_temperature(logits, (right + 1) % 3) == 1
    assert fit_temperature(np.empty((0, 3)), np.empty(0, np.int64)) == 1.0


def test_softmax_keeps_the_order_of_confident_tiles() -> None:
    logits = np.random.default_rng(0).normal(scale=300, size=(50, 5))
    np.testing.assert_allclose(softmax(logits), scipy_softmax(logits, axis=1))
    close = softmax(np.array([[30.0, 0.0], [31.0, 0.0]], dtype=np.float32))
    assert close[1, 0] > close[0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 tiles have logits that are NaN or infinite"):
        softmax([[0.0, 1.0], [bad, 1.0]])
