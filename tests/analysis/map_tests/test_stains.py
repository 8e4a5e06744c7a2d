import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.map_tests.stains import BINS, RANGE, histogram, otsu, stain_amounts
from trainer.tiles.colour import HED, is_glass, optical_density

COLOURS = np.array(
    [[255, 255, 255], [120, 80, 160], [230, 150, 190], [60, 40, 110], [200, 120, 60], [10, 10, 10]], dtype=np.uint8
)
# `skimage.color.rgb2hed` of these colours, scikit-image 0.26.0. It divides by -log10 of its darkest, 1e-6, and cuts
# negative amounts off.
SCIKIT_IMAGE = np.array(
    [
        [0.0, 0.0, 0.0],
        [0.0766258, 0.02402701, 0.01137468],
        [0.0, 0.02582508, 0.02415529],
        [0.15121614, 0.01737199, 0.01935169],
        [0.0, 0.0, 0.14763086],
        [0.28369149, 0.0, 0.20674979],
    ]
)


def test_stains_come_apart_as_in_scikit_image() -> None:
    amounts = stain_amounts(optical_density(COLOURS))
    np.testing.assert_allclose(np.maximum(amounts, 0) / 6, SCIKIT_IMAGE, atol=2e-7)


def test_stains_come_apart_as_in_scikit_image_here() -> None:
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed; its values stand in this file")
    tiles = np.random.default_rng(0).integers(1, 256, (2, 16, 16, 3), dtype=np.uint8)
    amounts = stain_amounts(optical_density(tiles))
    np.testing.assert_allclose(np.maximum(amounts, 0) / 6, color.rgb2hed(tiles), atol=1e-6)


def test_the_inverse_is_that_of_the_paper() -> None:
    """As printed, transposed and to two decimals, in Ruifrok & Johnston (2001)."""
    printed = [[1.88, -0.07, -0.60], [-1.02, 1.13, -0.48], [-0.55, -0.13, 1.57]]
    np.testing.assert_allclose(np.linalg.inv(HED), np.transpose(printed), atol=0.02)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_known_amounts_of_stain_come_back(given_amounts: list[float]) -> None:
    """Beer and Lambert, in float64: what a pixel would be that took up these amounts."""
    density = np.array(given_amounts) @ HED
    np.testing.assert_allclose(stain_amounts(density.astype(np.float32)), given_amounts, atol=1e-5)


def test_glass_is_what_absorbs_nothing() -> None:
    pixels = np.array([[255, 255, 255], [235, 230, 235], [208, 208, 208], [207, 250, 250]], dtype=np.uint8)
    assert is_glass(optical_density(pixels)).tolist() == [True, True, True, False]  # 255 * 10 ** -0.09 is 207.3


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_parts_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    amounts = np.concatenate([rng.normal(0.1, 0.05, 3000), rng.normal(0.6, 0.12, 800)])
    candidates = np.linspace(*RANGE, BINS + 1)[1:-1]
    halves = [(amounts[amounts < cut], amounts[amounts >= cut]) for cut in candidates]
    between = [
        len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0 for low, high in halves
    ]
    reached = np.interp(otsu(histogram(amounts)), candidates, between)
    assert reached == pytest.approx(max(between), rel=1e-3)  # near the top it is flat


def test_a_gap_is_cut_in_its_middle_and_one_amount_not_at_all() -> None:
    counts = histogram(np.array([0.1] * 5 + [0.5] * 5))
    assert otsu(counts) == pytest.approx(0.3, abs=0.003)
    assert np.isnan(otsu(histogram(np.full(9, 0.2))))
    assert np.isnan(otsu(np.zeros(BINS, dtype=np.int64)))
    assert histogram(np.array([-7.0, 9.0])).sum() == 2
