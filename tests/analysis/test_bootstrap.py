from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from analysis import bootstrap
from analysis.bootstrap import estimates, interval
from analysis.resampling import BINS, Confidence, Counts, Ranks, Temperature
from trainer.temperature import softmax

CLASSES = 3


def made(tiles: int, seed: int = 0, sharpness: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, tiles)
    logits = rng.normal(size=(tiles, CLASSES))
    logits[np.arange(tiles), labels] += sharpness
    return labels, softmax(logits)


def every(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None) -> bootstrap.Estimates:
    predicted = probabilities.argmax(axis=1)
    scorings = (Counts(labels, predicted, CLASSES), Ranks(labels, probabilities), Confidence(labels, probabilities))
    return estimates(scorings, labels, predicted, groups, CLASSES)


def test_intervals_are_those_of_a_library_bootstrap() -> None:
    """scipy's, which draws other resamples: ends agree within what the draws leave open."""
    labels, probabilities = made(400)
    predicted, found = probabilities.argmax(axis=1), every(labels, probabilities).overall
    references = {
        "balanced_accuracy": lambda rows: metrics.balanced_accuracy_score(labels[rows], predicted[rows]),
        "kappa": lambda rows: metrics.cohen_kappa_score(labels[rows], predicted[rows]),
        "macro_auc": lambda rows: metrics.roc_auc_score(labels[rows], probabilities[rows], multi_class="ovr"),
        "log_loss": lambda rows: metrics.log_loss(labels[rows], probabilities[rows]),
    }
    for name, score in references.items():
        drawn = stats.bootstrap((np.arange(400),), score, n_resamples=400, method="percentile", vectorized=False, rng=1)
        ours = found[name]
        assert ours.value == pytest.approx(score(np.arange(400)))
        assert ours.standard_error == pytest.approx(drawn.standard_error, rel=0.15)
        width = ours.high - ours.low
        for end, expected in zip((ours.low, ours.high), drawn.confidence_interval, strict=True):
            assert end == pytest.approx(expected, abs=0.15 * width)


def test_alike_tiles_of_a_slide_widen_the_interval() -> None:
    """Each tile 25 times in its slide: as much is known as of the tiles alone."""
    labels, probabilities = made(60)
    alone = every(labels, probabilities).overall
    copies = every(labels.repeat(25), probabilities.repeat(25, axis=0), np.arange(60).repeat(25))
    as_tiles = every(labels.repeat(25), probabilities.repeat(25, axis=0)).overall
    assert (copies.grouped, copies.units) == (True, 60)
    for name, one in alone.items():
        assert copies.overall[name].low == pytest.approx(one.low, rel=1e-6)
        assert copies.overall[name].high == pytest.approx(one.high, rel=1e-6)
    for name in ("accuracy", "macro_f1", "log_loss"):
        assert as_tiles[name].standard_error == pytest.approx(alone[name].standard_error / 5, rel=0.1)


def test_the_same_tiles_have_the_same_interval_however_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = made(50)
    first = every(labels, probabilities)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert every(labels, probabilities) == first


@pytest.mark.parametrize(("units", "alike"), [(3, 0.0), (5, 0.05), (8, 0.0), (8, 0.05)])
def test_intervals_of_few_slides_cover_the_truth(units: int, alike: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tiles of a slide are right or wrong together."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    monkeypatch.setattr(bootstrap, "threadpool_limits", lambda _: nullcontext())  # which takes most of the time
    rng, recalls, draws = np.random.default_rng(8), np.array([0.9, 0.8, 0.97]), 400
    expected = np.diag(recalls)
    expected[range(CLASSES), [1, 2, 0]] = 1 - recalls
    f1 = 2 * recalls / (1 + expected.sum(axis=0))
    truth = {"accuracy": recalls.mean(), "balanced_accuracy": recalls.mean(), "macro_f1": f1.mean()}
    labels, groups = np.tile(np.arange(CLASSES), units * 12), np.repeat(np.arange(units), 36)
    covered = dict.fromkeys(truth, 0)
    for _ in range(draws):
        skill = np.tile(recalls, (units, 1))
        if alike:
            skill = rng.beta(recalls * (1 / alike - 1), (1 - recalls) * (1 / alike - 1), size=skill.shape)
        predicted = np.where(rng.random(len(labels)) < skill[groups, labels], labels, (labels + 1) % CLASSES)
        found = estimates([Counts(labels, predicted, CLASSES)], labels, predicted, groups, CLASSES).overall
        for name, value in truth.items():
            covered[name] += found[name].low <= value <= found[name].high
    assert min(covered.values()) / draws >= 0.92, covered


def test_the_interval_of_few_units_is_students() -> None:
    """Of resampled means; and it goes over into that of many."""
    rng = np.random.default_rng(0)
    for units, within in ((2, 0.01), (6, 0.01), (19, 0.01), (20, 0.04), (60, 0.04)):
        values = rng.normal(size=units)
        means = rng.choice(values, size=(200_000, units)).mean(axis=1)
        found = bootstrap.resampled_interval(float(values.mean()), means, units)
        low, high = stats.t.interval(0.95, units - 1, values.mean(), stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high), abs=within * (high - low)), units


def test_an_interval_of_few_units_ends_where_the_score_does() -> None:
    means = np.random.default_rng(0).choice([0.7, 0.9, 1.0], size=(2000, 3)).mean(axis=1)
    assert bootstrap.interval("recall", 0.87, means, 3, 3).high == 1
    assert bootstrap.interval("mcc", -0.87, -means, 3, 3).low == -1
    assert bootstrap.interval("log_loss", 0.1, means - 0.77, 3, 3).low == 0
    assert bootstrap.interval("log_loss", 0.87, means, 3, 3).high > 1
    assert bootstrap.interval("temperature", 0.4, means, 3, 3).low == 0.05, "the end of the search for it"


def test_an_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        right = rng.random(80) < 0.7
        found = estimates([Counts(np.zeros(80, np.int64), 1 - right, 2)], np.zeros(80, np.int64), 1 - right, None, 2)
        covered += found.overall["accuracy"].low <= 0.7 <= found.overall["accuracy"].high
    assert 180 <= covered <= 199  # 95 % of 200, give or take three standard errors


def test_all_right_is_wilsons_interval_and_not_a_point() -> None:
    labels, groups = np.arange(30) % CLASSES, np.arange(30) // 6
    sure = softmax(20 * np.eye(CLASSES)[labels])
    low, high = stats.binomtest(30, 30).proportion_ci(method="wilson")
    found = every(labels, sure)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "mcc", "macro_auc", "micro_ap"):
        assert (found.overall[name].low, found.overall[name].high) == pytest.approx((low, high)), name
    low, _ = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert found.by_class["recall"][0].low == pytest.approx(low)
    low, _ = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert found.by_class["specificity"][0].low == pytest.approx(low)
    low, _ = stats.binomtest(5, 5).proportion_ci(method="wilson")
    assert every(labels, sure, groups).overall["accuracy"].low == pytest.approx(low), "five slides, not thirty tiles"


def test_all_wrong_is_wilsons_interval_of_shares_alone() -> None:
    labels = np.arange(30) % CLASSES
    found = every(labels, softmax(20 * np.eye(CLASSES)[(labels + 1) % CLASSES]))
    low, high = stats.binomtest(0, 30).proportion_ci(method="wilson")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        assert (found.overall[name].low, found.overall[name].high) == pytest.approx((low, high)), name
    low, high = stats.binomtest(0, 10).proportion_ci(method="wilson")
    assert (found.by_class["recall"][0].low, found.by_class["recall"][0].high) == pytest.approx((low, high))
    for name in ("log_loss", "brier"):
        assert math.isnan(found.overall[name].low), name
    opposed = every(np.arange(30) % 2, softmax(20 * np.eye(CLASSES)[(np.arange(30) + 1) % 2]))
    assert opposed.overall["mcc"].value == -1
    assert math.isnan(opposed.overall["mcc"].low)


def test_what_differs_in_no_resample_but_is_no_share_has_no_interval() -> None:
    """Scores that are the same for every tile: nothing is known of how they vary."""
    labels = np.arange(60) % CLASSES
    found = every(labels, np.full((60, CLASSES), 1 / CLASSES))
    for name, value in (("macro_auc", 1 / 2), ("kappa", 0), ("balanced_accuracy", 1 / CLASSES)):
        assert found.overall[name].value == pytest.approx(value)
        assert math.isnan(found.overall[name].low), name
    assert not math.isnan(found.overall["accuracy"].low)


@pytest.mark.parametrize("units", [None, 4])
@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_calibration_errors_cover_that_of_a_known_model(
    units: int | None, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are drawn from probabilities of which the model says the logits so much sharper: of 1, it is calibrated.
    Percentiles of the resamples never hold the 0 of that one."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    monkeypatch.setattr(bootstrap, "threadpool_limits", lambda _: nullcontext())
    rng, covered = np.random.default_rng(4), 0

    def drawn(tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = rng.normal(0, 2, (tiles, CLASSES))
        true = softmax(logits)
        labels = np.minimum((rng.random((tiles, 1)) > true.cumsum(axis=1)).sum(axis=1), CLASSES - 1)
        return labels, softmax(sharpness * logits), true

    _, said, true = drawn(400_000)
    confidence, right = said.max(axis=1), true[np.arange(len(true)), said.argmax(axis=1)]
    bins = np.bincount(np.ceil(confidence * BINS).astype(int), confidence - right)
    truth = float(np.abs(bins).sum()) / len(true) if sharpness != 1 else 0.0
    groups = None if units is None else np.arange(300) % units
    for _ in range(200):
        labels, said, _ = drawn(300)
        found = estimates([Confidence(labels, said)], labels, labels, groups, CLASSES).overall["ece"]
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert covered >= 0.92 * 200


def test_one_slide_tells_nothing_of_others() -> None:
    labels, probabilities = made(40)
    found = every(labels, probabilities, np.zeros(40, np.int64))
    assert found.units == 1
    assert all(math.isnan(one.low) and not math.isnan(one.value) for one in found.overall.values())


def test_a_class_that_resamples_lose() -> None:
    """One tile of a class is missing in 37 % of resamples: none of its own scores has an interval; means do."""
    labels, probabilities = made(40)
    labels = np.where(np.arange(40) == 0, 2, labels % 2)
    found = every(labels, probabilities)
    assert not math.isnan(found.by_class["recall"][2].value)
    assert math.isnan(found.by_class["recall"][2].low)
    assert not math.isnan(found.by_class["recall"][0].low)
    assert found.overall["balanced_accuracy"].low < found.overall["balanced_accuracy"].value
    absent = every(labels % 2, probabilities)
    assert math.isnan(absent.by_class["recall"][2].value)
    assert not math.isnan(absent.by_class["specificity"][2].low)


def test_rules_of_a_single_interval() -> None:
    some = np.append(np.linspace(0.1, 0.3, 101), [np.nan] * 5)
    found = interval("recall", 0.2, some, 10, 100_000)
    assert (found.low, found.high) == pytest.approx((0.105, 0.295), abs=1e-6)
    assert math.isnan(interval("recall", 0.2, np.append(some, np.nan), 10, 100_000).low), "lost in more than 5 %"
    assert math.isnan(interval("recall", math.nan, some, 10, 10).low)
    assert math.isnan(interval("log_loss", 0.2, np.full(100, 0.2), 10, 10).low), "no share, so not Wilson's"
    assert math.isnan(interval("recall", 0.2, np.full(100, 0.2), 10, 10).low), "some are wrong, so not Wilson's"


def test_the_temperature_has_an_interval() -> None:
    labels, probabilities = made(600, sharpness=2.0)
    found = estimates([Temperature(labels, probabilities)], labels, labels, None, CLASSES).overall["temperature"]
    assert 0.05 < found.low < found.value < found.high < 3


@pytest.mark.parametrize("tiles", [0, 1])
def test_hardly_any_tiles(tiles: int) -> None:
    labels, probabilities = np.zeros(tiles, np.int64), np.tile([0.7, 0.2, 0.1], (tiles, 1))
    found = every(labels, probabilities)
    assert [found.overall[name].value for name in ("accuracy", "balanced_accuracy")] == pytest.approx(
        [1.0 if tiles else math.nan] * 2, nan_ok=True
    )
    assert math.isnan(found.overall["macro_auc"].value)
    temperature = estimates([Temperature(labels, probabilities)], labels, labels, None, CLASSES).overall["temperature"]
    assert math.isnan(temperature.value) == (tiles == 0)
