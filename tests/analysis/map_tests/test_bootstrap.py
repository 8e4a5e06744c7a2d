import numpy as np
import pytest
from scipy import stats

from analysis.map_tests.bootstrap import mean


def test_over_tiles_it_is_students_interval_where_means_are_normal() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 40)
    found = mean(values, None)
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert (found.value, found.tiles, found.units) == (pytest.approx(values.mean()), 40, 40)
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


def test_tiles_of_a_group_are_drawn_together() -> None:
    """Ten tiles that repeat what their slide says tell no more than one."""
    slides = np.random.default_rng(1).normal(size=12)
    alone = mean(slides, None)
    repeated = mean(np.repeat(slides, 10), np.repeat(np.arange(12), 10))
    assert (repeated.low, repeated.high, repeated.units) == (pytest.approx(alone.low), pytest.approx(alone.high), 12)
    assert mean(np.repeat(slides, 10), None).high < alone.high


def test_groups_count_by_their_tiles() -> None:
    found = mean(np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), np.array([7, 7, 7, 2, 3, 4, 5]))
    assert (found.value, found.units) == (pytest.approx(3 / 7), 5)


def test_what_is_not_defined_is_left_out() -> None:
    values = np.array([0.1, np.nan, 0.2, 0.3, 0.5, np.nan, 0.6])
    kept = mean(values[~np.isnan(values)], None)
    assert mean(values, None) == kept
    assert kept.tiles == 5


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_unit_has_no_interval(count: int) -> None:
    found = mean(np.ones(count), None)
    assert np.isnan([found.low, found.high]).all()
    assert found.value == 1 if count else np.isnan(found.value)


def test_where_all_say_the_same_the_interval_is_a_point() -> None:
    found = mean(np.full(7, 0.25), None)
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize("units", [2, 3, 5, 8])
def test_it_covers(units: int) -> None:
    """Of 600 draws 95 % of intervals hold the truth, to 2.5 standard errors; plain percentiles do not."""
    drawn = np.random.default_rng(2).normal(1, 1, (600, units))
    held = [found.low < 1 < found.high for found in (mean(groups, None) for groups in drawn)]
    plain = [
        np.quantile(groups[np.random.default_rng(0).integers(0, units, (2000, units))].mean(1), (0.025, 0.975))
        for groups in drawn
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.022)
    assert np.mean([low < 1 < high for low, high in plain]) < 0.928
