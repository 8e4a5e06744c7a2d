import numpy as np
import pytest

from analysis.map_tests.fibres import WINDOW_PX, coherence


def stripes(angle: float, size: int = 96) -> np.ndarray:
    """Waves 8 px long, whose lines run at `angle`."""
    y, x = np.mgrid[:size, :size]
    return np.sin((x * np.sin(angle) + y * np.cos(angle)) * 2 * np.pi / 8)


@pytest.mark.parametrize("angle", [0, 0.4, np.pi / 4, np.pi / 2, 2.5])
def test_stripes_are_coherent_in_every_direction(angle: float) -> None:
    found = coherence(stripes(angle)[None])[0]
    assert found[24:72, 24:72].min() > 0.97
    assert found.min() > 0.85  # less at the ends of the picture


def test_noise_and_nothing_are_not() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 96, 96))
    assert coherence(noise).mean() < 0.15
    assert coherence(np.full((1, 32, 32), 0.3)).max() == 0


def test_crossed_stripes_are_not() -> None:
    crossed = stripes(0) + stripes(np.pi / 2)
    assert coherence(crossed[None])[0, 24:72, 24:72].max() < 0.05


def test_it_does_not_depend_on_how_strong_the_stain_is() -> None:
    field = np.random.default_rng(1).normal(size=(1, 48, 48))
    np.testing.assert_allclose(coherence(1e-3 * field + 5), coherence(field), atol=1e-2)


def test_it_is_that_of_the_eigenvalues() -> None:
    """Against a structure tensor summed by hand with a Gaussian window, at the middle of a picture."""
    size = 65
    field = np.random.default_rng(2).normal(size=(size, size)) + 2 * stripes(0.7, size)
    offsets = np.arange(size) - size // 2
    bell = np.exp(-0.5 * offsets**2)  # the gradient's Gaussian, standard deviation 1
    bell /= bell.sum()
    slope = -offsets * bell
    rows = [np.convolve(row, slope[28:37], "same") for row in field]
    right = np.array([np.convolve(column, bell[28:37], "same") for column in np.transpose(rows)]).T
    rows = [np.convolve(row, bell[28:37], "same") for row in field]
    down = np.array([np.convolve(column, slope[28:37], "same") for column in np.transpose(rows)]).T
    window = np.exp(-0.5 * (offsets / WINDOW_PX) ** 2)
    weights = np.outer(window, window) / window.sum() ** 2
    tensor = [[(weights * a * b).sum() for a in (down, right)] for b in (down, right)]
    low, high = np.linalg.eigvalsh(tensor)
    assert coherence(field[None])[0, size // 2, size // 2] == pytest.approx((high - low) / (high + low), abs=0.01)


def test_pictures_do_not_touch_each_other() -> None:
    pair = np.random.default_rng(3).normal(size=(2, 40, 40))
    np.testing.assert_array_equal(coherence(pair)[1], coherence(pair[1:])[0])
