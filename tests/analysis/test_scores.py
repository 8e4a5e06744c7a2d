import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from analysis import scores
from trainer.temperature import softmax

CLASSES = 4


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels, some classes possibly absent, and coarse probabilities, so that there are ties."""
    tiles = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labels = rng.integers(0, draw(st.integers(1, CLASSES)), tiles)
    return labels, softmax(rng.integers(-3, 4, (tiles, CLASSES)))


@given(scored())
def test_confusion_is_scikit_learns(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = data
    predicted = probabilities.argmax(axis=1)
    matrix = scores.confusion_matrix(labels, predicted, CLASSES)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=range(CLASSES)))


@given(scored())
def test_curves_are_scikit_learns(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = data
    for index, curve in enumerate(scores.roc_curves(labels, probabilities)):
        if (labels == index).all() or not (labels == index).any():
            assert np.isnan(curve.area)
            assert len(curve.true_positive_rate) == 0
            continue
        run, rise, _ = metrics.roc_curve(labels == index, probabilities[:, index], drop_intermediate=False)
        np.testing.assert_allclose(curve.false_positive_rate, run)
        np.testing.assert_allclose(curve.true_positive_rate, rise)
        assert curve.area == pytest.approx(metrics.auc(run, rise))


@given(scored())
def test_precision_against_recall_is_scikit_learns(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = data
    for index, curve in enumerate(scores.precision_recall_curves(labels, probabilities)):
        if not (labels == index).any():
            assert np.isnan(curve.average)
            assert len(curve.recall) == 0
            continue
        given_ = (labels == index, probabilities[:, index])
        precision, recall, _ = metrics.precision_recall_curve(*given_)
        np.testing.assert_allclose(curve.precision, precision[:-1][::-1])  # scikit-learn adds the point (0, 1)
        np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
        assert curve.average == pytest.approx(metrics.average_precision_score(*given_))
    flat = (np.eye(CLASSES)[labels].ravel(), probabilities.ravel())
    micro = scores.micro_precision_recall(labels, probabilities)
    assert micro.average == pytest.approx(metrics.average_precision_score(*flat))


@given(scored())
def test_micro_is_scikit_learns(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = data
    one_hot = np.eye(CLASSES)[labels]
    expected = metrics.roc_auc_score(one_hot.ravel(), probabilities.ravel())
    assert scores.micro_roc(labels, probabilities).area == pytest.approx(expected)


def test_macro_curve_is_the_mean_of_the_curves() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 400)
    probabilities = softmax(rng.normal(size=(400, CLASSES)) + 2 * np.eye(CLASSES)[labels])
    macro = scores.macro_roc(scores.roc_curves(labels, probabilities))
    grid = np.linspace(0, 1, 1001)
    mean = np.zeros_like(grid)
    for index in range(3):  # the fourth class has no tile
        run, rise, _ = metrics.roc_curve(labels == index, probabilities[:, index])
        mean += np.interp(grid, run, rise) / 3
    drawn = np.interp(grid, macro.false_positive_rate, macro.true_positive_rate)
    np.testing.assert_allclose(drawn, mean, atol=1e-12)
    assert macro.area == pytest.approx(metrics.auc(macro.false_positive_rate, macro.true_positive_rate))
    assert (macro.false_positive_rate[0], macro.true_positive_rate[0]) == (0, 0)
    assert (macro.false_positive_rate[-1], macro.true_positive_rate[-1]) == (1, 1)


def test_macro_area_is_scikit_learns() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, CLASSES, 300)
    probabilities = softmax(rng.normal(size=(300, CLASSES)) + np.eye(CLASSES)[labels])
    expected = metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    assert scores.macro_roc(scores.roc_curves(labels, probabilities)).area == pytest.approx(expected)


def test_constant_scores_have_an_area_of_one_half() -> None:
    curve = scores.roc(np.array([True, False, True, False]), np.full(4, 0.25))
    assert curve.area == 0.5
    assert curve.false_positive_rate.tolist() == [0.0, 1.0]


def test_rows_of_absent_classes_are_not_numbers() -> None:
    shares = scores.by_row(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(shares, [[0.75, 0.25], [np.nan, np.nan]])


def test_students_quantiles_are_scipys() -> None:
    for degrees in (1, 2, 3, 7, 40, 999, 20_000):
        assert scores._student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-5)


def test_the_interval_of_a_single_class_is_wilsons() -> None:
    predicted = np.array([0] * 1870 + [1] * 130)
    interval = scores.balanced_accuracy_interval(np.zeros(2000, dtype=np.int64), predicted)
    expected = stats.binomtest(1870, 2000).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=5e-5)


@pytest.mark.parametrize("by_group", [False, True])
def test_the_standard_error_is_the_bootstraps(by_group: bool) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 20)
    labels = rng.integers(0, 3, 1200)
    skill = rng.beta(8, 2, size=60)[groups]
    predicted = np.where(rng.random(1200) < skill, labels, (labels + 1) % 3)
    interval = scores.balanced_accuracy_interval(labels, predicted, groups if by_group else None)
    assert interval.value == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    members = [np.flatnonzero(groups == group) for group in range(60)] if by_group else np.arange(1200)[:, None]
    resampled = []
    for _ in range(400):
        drawn = np.concatenate([members[place] for place in rng.integers(0, len(members), len(members))])
        resampled.append(metrics.balanced_accuracy_score(labels[drawn], predicted[drawn]))
    assert interval.standard_error == pytest.approx(np.std(resampled), rel=0.12)


@pytest.mark.parametrize("alike", [0.0, 0.15])
def test_intervals_by_group_cover_the_truth_also_where_tiles_of_a_slide_are_alike(alike: float) -> None:
    rng, recalls = np.random.default_rng(1), np.array([0.9, 0.8, 0.97])
    labels, groups = np.tile(np.arange(3), 8 * 12), np.repeat(np.arange(8), 36)
    covered = {"groups": 0, "tiles": 0}
    for _ in range(300):
        skill = np.tile(recalls, (8, 1))
        if alike:
            skill = rng.beta(recalls * (1 / alike - 1), (1 - recalls) * (1 / alike - 1), size=(8, 3))
        predicted = np.where(rng.random(len(labels)) < skill[groups, labels], labels, (labels + 1) % 3)
        for name, units in (("groups", groups), ("tiles", None)):
            interval = scores.balanced_accuracy_interval(labels, predicted, units)
            covered[name] += interval.low <= recalls.mean() <= interval.high
    assert covered["groups"] / 300 > 0.92
    assert (covered["tiles"] / 300 > 0.92) == (alike == 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40))
def test_an_interval_holds_its_value_and_lies_between_nothing_and_everything(tiles: list[tuple[int, int, int]]) -> None:
    labels, predicted, groups = np.array(tiles).T
    for units in (None, groups):
        interval = scores.balanced_accuracy_interval(labels, predicted, units)
        if len(labels) < 2 or (units is not None and len(set(groups)) < 2):
            assert np.isnan([interval.low, interval.high]).all()
        else:
            assert 0 <= interval.low <= interval.value + 1e-12
            assert interval.value <= interval.high + 1e-12 <= 1 + 1e-11
            assert interval.low < interval.high
