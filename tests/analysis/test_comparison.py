from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from analysis.comparison import delong, differences, mcnemar
from analysis.design_effect import widening
from analysis.resampling import Confidence, Counts
from trainer.temperature import softmax


def made(tiles: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(tiles) % 3
    logits = np.random.default_rng(seed).normal(size=(tiles, 3))
    logits[np.arange(tiles), labels] += sharpness
    return labels, softmax(logits)


def test_a_difference_is_resampled_in_pairs() -> None:
    """Against scipy's paired bootstrap; and where both say the same, there is none."""
    labels, one = made(300, 1.0, 0)
    other = made(300, 1.4, 1)[1]
    first, second = ([Counts(labels, each.argmax(axis=1), 3), Confidence(labels, each)] for each in (one, other))
    found = differences(first, second, None, 300)["accuracy"]
    right = [each.argmax(axis=1) == labels for each in (one, other)]
    expected = stats.bootstrap(
        right, lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis), paired=True, method="percentile", rng=2
    )
    width = found.high - found.low
    assert found.value == pytest.approx(right[1].mean() - right[0].mean())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.1 * width)
    same = differences(first, first, None, 300)
    assert same["log_loss"].value == 0
    assert math.isnan(same["log_loss"].low)
    assert np.isnan([each.high for each in same["recall"]]).all()


def test_slides_are_drawn_in_pairs_too() -> None:
    labels, one = made(90, 1.0, 0)
    other = made(90, 1.4, 1)[1]
    scorings = [[Counts(np.tile(labels, 4), np.tile(each.argmax(axis=1), 4), 3)] for each in (one, other)]
    grouped = differences(*scorings, np.tile(np.arange(90), 4), 360)["accuracy"]
    alone = differences(*([Counts(labels, each.argmax(axis=1), 3)] for each in (one, other)), None, 90)["accuracy"]
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_binomial_test(only_first: int, only_second: int) -> None:
    first = np.array([True] * (only_first + 3) + [False] * (only_second + 2))
    second = np.array([True] * 3 + [False] * only_first + [True] * only_second + [False] * 2)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    both = only_first + only_second
    tail = sum(math.comb(both, k) for k in range(min(only_first, only_second) + 1)) / 2**both
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


@given(st.integers(20, 60), st.integers(0, 1000))
def test_delong_is_its_definition(tiles: int, seed: int) -> None:
    """Against the covariances of DeLong's structural components, written out pair by pair."""
    rng = np.random.default_rng(seed)
    positive = np.arange(tiles) % 2 == 0
    both = rng.integers(0, 6, (2, tiles)).astype(float)
    kernel = np.array([[[(x > y) + (x == y) / 2 for y in score[~positive]] for x in score[positive]] for score in both])
    areas = kernel.mean(axis=(1, 2))
    covariance = np.cov(kernel.mean(axis=2)) / positive.sum() + np.cov(kernel.mean(axis=1)) / (~positive).sum()
    contrast = np.array([-1, 1])
    error = math.sqrt(max(0.0, contrast @ covariance @ contrast))
    found = delong(positive, *both)
    assert (found.first, found.second) == pytest.approx(tuple(areas))
    assert found.first == pytest.approx(metrics.roc_auc_score(positive, both[0]))
    assert found.standard_error == pytest.approx(error, abs=1e-9)
    if error > 1e-9:
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(areas[1] - areas[0]) / error))


@pytest.mark.parametrize("positives", [10, 40])
def test_delong_seldom_calls_chance_a_difference(positives: int) -> None:
    """Two scores that are as good as each other, 600 times."""
    rng, positive = np.random.default_rng(0), np.arange(positives + 200) < positives
    found = [delong(positive, *(rng.normal(size=(2, len(positive))) + positive)).p_value for _ in range(600)]
    assert np.mean(np.array(found) < 0.05) < 0.09


@pytest.mark.parametrize("positives", [1, 9, 91, 99])
def test_delong_says_nothing_of_few_tiles(positives: int) -> None:
    positive = np.arange(100) < positives
    found = delong(positive, *np.random.default_rng(0).normal(size=(2, 100)))
    assert 0 < found.first < 1
    assert math.isnan(found.p_value)


def test_a_difference_that_no_resample_shows_is_not_certain() -> None:
    """Of accuracy it is Tango's: his statistic without a discordant pair reaches the quantile at both ends."""
    labels, one = made(90, 1.0, 0)
    counts = [Counts(labels, one.argmax(axis=1), 3)]
    found = differences(counts, counts, None, 90)
    end, quantile = found["accuracy"].high, stats.norm.ppf(0.975)
    assert 90 * end / math.sqrt(90 * end * (1 - end)) == pytest.approx(quantile, rel=1e-5)
    assert found["accuracy"].low == -end
    assert math.isnan(found["macro_f1"].low)


def test_areas_that_are_not_defined() -> None:
    assert math.isnan(delong(np.ones(3, bool), np.arange(3.0), np.arange(3.0)).first)


def test_fifty_patients_of_7180_tiles() -> None:
    """Against a simulation of tiles whose being right is correlated within patients."""
    factors = [round(widening(7180, 50, correlation), 1) for correlation in (0.01, 0.05, 0.1)]
    assert factors == [1.6, 2.9, 3.9]
    rng, patients, tiles, correlation = np.random.default_rng(0), 40, 25, 0.1
    share, strength = 0.8, (1 - correlation) / correlation
    skill = rng.beta(share * strength, (1 - share) * strength, (4000, patients))
    means = rng.binomial(tiles, skill).mean(axis=1) / tiles
    as_tiles = math.sqrt(share * (1 - share) / (patients * tiles))
    assert means.std() / as_tiles == pytest.approx(widening(patients * tiles, patients, correlation), rel=0.05)
