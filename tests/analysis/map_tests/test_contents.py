import numpy as np
import pytest

from analysis.map_tests.contents import contents, nuclear_threshold
from tests.analysis.map_tests.planted import EOSIN, GLASS, NUCLEUS, planted

BOX = (0.0, 0.0, 96.0, 96.0)


def test_planted_nuclei_are_found_in_their_cells() -> None:
    shares = np.arange(18).reshape(2, 3, 3) / 32
    tiles = planted(shares, seed=0)
    found = contents(tiles, nuclear_threshold([tiles[:1], tiles[1:]]), (3, 3), BOX)
    np.testing.assert_allclose(found.nuclei, shares, atol=0.02)
    assert found.glass.max() == 0


def test_one_threshold_for_all_tiles() -> None:
    """A tile without nuclei has none: its own threshold would have cut its noise in two."""
    shares = np.zeros((2, 3, 3))
    shares[0] = 0.5
    tiles = planted(shares, seed=1)
    threshold = nuclear_threshold([tiles])
    assert contents(tiles, threshold, (3, 3), BOX).nuclei[1].max() == 0
    assert contents(tiles, nuclear_threshold([tiles[1:]]), (3, 3), BOX).nuclei[1].max() > 0.1


def test_the_share_of_glass_is_that_of_its_pixels() -> None:
    tiles = planted(np.full((1, 3, 3), 0.5), seed=2)
    tiles[0, :, :40] = GLASS
    found = contents(tiles, nuclear_threshold([tiles]), (3, 3), BOX)
    np.testing.assert_allclose(found.glass[0], [[1, 0.25, 0]] * 3)
    assert found.nuclei[0, :, 0].max() == 0
    assert found.fibres[0, :, 0].max() == 0


def test_cells_follow_a_centre_crop() -> None:
    shares = np.zeros((1, 3, 3))
    shares[0, 1, 1] = 1
    tiles = planted(shares, seed=3)
    found = contents(tiles, nuclear_threshold([tiles]), (2, 2), (32.0, 32.0, 32.0, 32.0))
    np.testing.assert_allclose(found.nuclei, 1, atol=0.02)


def test_striped_eosin_is_coherent_and_speckled_is_not() -> None:
    rng = np.random.default_rng(4)
    stripes = (np.sin(np.arange(96) * 2 * np.pi / 8) > 0)[None, :].repeat(96, axis=0)
    speckles = rng.random((96, 96)) > 0.5
    pale = np.array([236, 190, 215])
    tiles = np.stack([np.where(pattern[..., None], EOSIN, pale) for pattern in (stripes, speckles)]).astype(np.uint8)
    found = contents(tiles, 1.0, (3, 3), BOX).fibres
    assert found[0].min() > 0.8
    assert found[1].max() < 0.25


@pytest.mark.parametrize("colour", [GLASS, NUCLEUS])
def test_tiles_of_one_colour_have_no_threshold_and_no_nuclei(colour: tuple[int, int, int]) -> None:
    tiles = np.full((2, 96, 96, 3), colour, dtype=np.uint8)
    threshold = nuclear_threshold([tiles])
    assert np.isnan(threshold)
    assert contents(tiles, threshold, (3, 3), BOX).nuclei.max() == 0
