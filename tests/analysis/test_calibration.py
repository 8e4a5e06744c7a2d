from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import calibration_curve

from analysis.calibration import at_temperature, reliability, selective_accuracy
from analysis.collect import Predictions
from analysis.evaluation import Evaluation
from analysis.resampling import BINS
from trainer.temperature import softmax


def made(tiles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, tiles), softmax(rng.normal(size=(tiles, 3)))


def test_reliability_is_scikit_learns() -> None:
    labels, probabilities = made(500, 0)
    ours = reliability(labels, probabilities)
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=BINS)
    np.testing.assert_allclose(ours.accuracy, accuracy)
    np.testing.assert_allclose(ours.confidence, confidence)
    assert ours.tiles.sum() == 500
    expected = [
        stats.binomtest(round(share * size), size).proportion_ci(method="wilson")
        for share, size in zip(ours.accuracy, ours.tiles, strict=True)
    ]
    np.testing.assert_allclose(np.stack([ours.low, ours.high], axis=1), expected, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(size=(20, 4))
    np.testing.assert_allclose(at_temperature(softmax(logits), temperature), softmax(logits / temperature))


@given(st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_selective_accuracy_is_that_above_each_threshold(tiles: int, seed: int, ties: bool) -> None:
    labels, probabilities = made(tiles, seed)
    if ties:
        probabilities = probabilities.round(1) / probabilities.round(1).sum(axis=1, keepdims=True)
    found = selective_accuracy(labels, probabilities)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    thresholds = np.unique(confidence)[::-1]
    np.testing.assert_allclose(found.coverage, [(confidence >= each).mean() for each in thresholds])
    np.testing.assert_allclose(found.accuracy, [right[confidence >= each].mean() for each in thresholds])
    assert found.coverage[-1] == 1


def test_the_table_of_coverage_is_of_the_most_certain_and_counts_tiles() -> None:
    labels, probabilities = made(300, 3)
    table = pd.DataFrame({"group": [None] * 300})
    found = Evaluation(Predictions("val", "", table, labels, probabilities, {}, ("a", "b", "c")), None).selective
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    row = found.set_index("coverage").loc[0.8]
    told = np.argsort(-confidence)[:240]
    assert (row["tiles"], row["confidence from"]) == (240, confidence[told].min())
    assert row["accuracy"].value == pytest.approx(right[told].mean())
    expected = stats.binomtest(int(right[told].sum()), 240).proportion_ci(method="wilson")
    assert (row["accuracy"].low, row["accuracy"].high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert found["tiles"].iloc[-1] == 300
