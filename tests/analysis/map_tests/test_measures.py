import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from analysis.map_tests.measures import area_auroc, border, heat_share, rank_correlation

GRIDS = hnp.arrays(np.float64, (7, 7), elements=st.integers(0, 5).map(float))


@given(GRIDS, GRIDS)
def test_rank_correlation_is_scipys(heat: np.ndarray, contents: np.ndarray) -> None:
    ours = rank_correlation(heat[None], contents[None])
    if np.ptp(heat) == 0 or np.ptp(contents) == 0:
        assert np.isnan(ours).all()
    else:
        assert ours[0] == pytest.approx(spearmanr(heat.ravel(), contents.ravel()).statistic, abs=1e-12)


@given(GRIDS, hnp.arrays(np.int64, (7, 7), elements=st.integers(0, 10)))
def test_auroc_is_that_of_all_pixels(heat: np.ndarray, pixels: np.ndarray) -> None:
    """Against scikit-learn on every pixel, where each cell has 10, `pixels` of them of the kind."""
    is_kind = np.concatenate([np.arange(10) < count for count in pixels.ravel()])
    ours = area_auroc(heat, pixels / 10)
    if np.ptp(heat) == 0 or is_kind.all() or not is_kind.any():
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(roc_auc_score(is_kind, np.repeat(heat.ravel(), 10)), abs=1e-9)


def test_a_map_on_the_nuclei_has_1_and_one_beside_them_0() -> None:
    nuclei = np.zeros((1, 7, 7))
    nuclei[0, 2:4, 3:6] = 1
    assert area_auroc(nuclei, nuclei).tolist() == [1]
    assert area_auroc(1 - nuclei, nuclei).tolist() == [0]
    assert rank_correlation(nuclei, nuclei) == pytest.approx(1)
    assert rank_correlation(1 - nuclei, nuclei) == pytest.approx(-1)
    assert heat_share(nuclei, nuclei).tolist() == [1]
    assert heat_share(1 - nuclei, nuclei).tolist() == [0]


def test_where_cells_are_mixed_no_map_is_better_than_the_area_itself() -> None:
    rng = np.random.default_rng(0)
    area = rng.random((7, 7))
    best = area_auroc(area, area)
    assert best < 0.9
    assert all(area_auroc(rng.random((7, 7)), area) <= best for _ in range(50))


def test_a_random_map_has_a_half() -> None:
    rng = np.random.default_rng(1)
    area = rng.random((400, 7, 7))
    heat = rng.random((400, 7, 7))
    assert area_auroc(heat, area).mean() == pytest.approx(0.5, abs=0.01)
    assert rank_correlation(heat, area).mean() == pytest.approx(0, abs=0.02)
    assert heat_share(heat, area).mean() == pytest.approx(0.5, abs=0.01)


def test_an_empty_map_says_nothing() -> None:
    empty, area = np.zeros((3, 4, 4)), np.random.default_rng(2).random((3, 4, 4))
    for measure in (rank_correlation, area_auroc, heat_share):
        assert np.isnan(measure(empty, area)).all()


def test_several_maps_of_each_tile_are_measured_at_once() -> None:
    rng = np.random.default_rng(3)
    maps, area = rng.random((5, 2, 4, 4)), rng.random((2, 4, 4))
    for measure in (rank_correlation, area_auroc, heat_share):
        together = measure(maps, area)
        assert together.shape == (5, 2)
        assert together[3, 1] == pytest.approx(measure(maps[3, 1], area[1]))


def test_the_border_is_the_outermost_ring() -> None:
    assert border((7, 7)).sum() == 24
    assert border((3, 4)).sum() == 10
    assert border((2, 2)).all()
