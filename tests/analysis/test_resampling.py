"""Every score under weights, against scikit-learn's with `sample_weight`, or on tiles that are there so often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from analysis.resampling import BINS, Confidence, Counts, Ranks, Scores, Temperature, confidence_bin
from trainer.temperature import fit_temperature, softmax

CLASSES = 4


@st.composite
def weighted(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, some classes possibly absent, coarse probabilities, so that there are ties, and weights from 0 to 3."""
    tiles = draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labels = rng.integers(0, draw(st.integers(1, CLASSES)), tiles)
    probabilities = softmax(rng.integers(-3, 4, (tiles, CLASSES)))
    weights = rng.integers(0, 4, tiles)
    weights[rng.integers(tiles)] = 1
    return labels, probabilities, weights


def ours(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> Scores:
    """The scores under `weights`, computed beside others."""
    scorings = (Counts(labels, probabilities.argmax(axis=1), CLASSES), Ranks(labels, probabilities))
    beside = np.stack([np.ones(len(labels)), weights, weights[::-1]], axis=1).astype(np.float32)
    every = (scoring.under(beside) for scoring in (*scorings, Confidence(labels, probabilities)))
    return {name: values[..., 1] for scores_ in every for name, values in scores_.items()}


@given(weighted())
def test_counts_are_scikit_learns(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, probabilities, weights = data
    predicted, found = probabilities.argmax(axis=1), ours(*data)
    there, predicted_there = sorted(set(labels[weights > 0])), sorted(set(predicted[weights > 0]))
    every, options = list(range(CLASSES)), {"sample_weight": weights, "zero_division": np.nan}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, predicted, labels=every, **options)
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    np.testing.assert_allclose(found["f1"][there], f1[there])
    assert np.isnan(np.delete(found["f1"], there)).all()
    for index in every:
        others = labels != index
        expected = metrics.recall_score(others, predicted != index, pos_label=True, **options)
        assert found["specificity"][index] == pytest.approx(expected, nan_ok=True)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted, sample_weight=weights))
    assert found["balanced_accuracy"] == pytest.approx(recall[there].mean())
    assert found["macro_f1"] == pytest.approx(f1[there].mean())
    expected = metrics.f1_score(labels, predicted, labels=there, average="weighted", sample_weight=weights)
    assert found["weighted_f1"] == pytest.approx(expected)
    if len(there) > 1 and len(predicted_there) > 1:
        expected = metrics.matthews_corrcoef(labels, predicted, sample_weight=weights)
        assert found["mcc"] == pytest.approx(expected)
    else:
        assert np.isnan(found["mcc"])
    if there == predicted_there and len(there) == 1:
        assert np.isnan(found["kappa"])
    else:
        assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(labels, predicted, sample_weight=weights))


@given(weighted())
def test_areas_and_average_precisions_are_scikit_learns(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, probabilities, weights = data
    found, there = ours(*data), sorted(set(labels[weights > 0]))
    one_hot = np.eye(CLASSES)[labels]
    areas, precisions = np.full(CLASSES, np.nan), np.full(CLASSES, np.nan)
    for index in there:
        given_ = (one_hot[:, index], probabilities[:, index])
        precisions[index] = metrics.average_precision_score(*given_, sample_weight=weights)
        if len(there) > 1:
            areas[index] = metrics.roc_auc_score(*given_, sample_weight=weights)
    np.testing.assert_allclose(found["auc"], areas, rtol=1e-6)
    np.testing.assert_allclose(found["ap"], precisions, rtol=1e-6)
    assert found["macro_ap"] == pytest.approx(precisions[there].mean())
    assert found["macro_auc"] == pytest.approx(areas[there].mean(), nan_ok=True)
    flat = (one_hot.ravel(), probabilities.ravel())
    repeated = weights.repeat(CLASSES)
    assert found["micro_auc"] == pytest.approx(metrics.roc_auc_score(*flat, sample_weight=repeated))
    assert found["micro_ap"] == pytest.approx(metrics.average_precision_score(*flat, sample_weight=repeated))


@given(weighted())
def test_losses_are_scikit_learns(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, probabilities, weights = data
    found = ours(*data)
    expected = metrics.log_loss(labels, probabilities, labels=range(CLASSES), sample_weight=weights)
    assert found["log_loss"] == pytest.approx(expected)
    squares = np.square(probabilities - np.eye(CLASSES)[labels]).sum(axis=1)
    assert found["brier"] == pytest.approx(np.average(squares, weights=weights))


@given(weighted())
def test_calibration_error_is_that_of_its_definition(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, probabilities = (np.repeat(each, data[2], axis=0) for each in data[:2])
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence > low) & (confidence <= low + 1 / BINS)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert ours(*data)["ece"] == pytest.approx(error, abs=1e-12)


def test_every_confidence_has_its_bin() -> None:
    np.testing.assert_array_equal(confidence_bin(np.array([0.01, 1 / BINS, 0.5, 1.0])), [0, 0, 7, 14])


def test_a_certain_mistake_has_a_finite_loss() -> None:
    (loss,) = Confidence(np.array([1]), np.array([[1.0, 0.0]])).under(np.ones((1, 1), np.float32))["log_loss"]
    assert 700 < loss < 710


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperatures_are_those_that_fit_each_weighting(sharpness: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(300, 3))
    labels = np.array([rng.choice(3, p=each) for each in softmax(logits)])
    weights = rng.integers(0, 4, (300, 5))
    found = Temperature(labels, softmax(sharpness * logits)).under(weights.astype(np.float32))["temperature"]
    for column, temperature in zip(weights.T, found, strict=True):
        expected = fit_temperature(sharpness * logits.repeat(column, axis=0), labels.repeat(column))
        assert temperature == pytest.approx(expected, rel=1e-3)
