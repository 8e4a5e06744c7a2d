"""The numbers of a tile's stain, against tiles whose stain is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trainer.tiles.colour import HED
from trainer.tiles.stain import FAR, MOST_TILES, NUMBERS, Stain, differences, measure, sample, summarise


def dyed(haematoxylin: float, eosin: float, size: int = 64) -> np.ndarray:
    """A tile (size, size, 3) that took up these amounts evenly, by the Beer-Lambert law."""
    density = haematoxylin * HED[0] + eosin * HED[1]
    return np.tile((255 * 10**-density).round().astype(np.uint8), (size, size, 1))


@pytest.mark.parametrize(("haematoxylin", "eosin"), [(0.5, 0.2), (0.1, 0.6), (0.3, 0.0)])
def test_known_amounts_are_found(haematoxylin: float, eosin: float) -> None:
    tile = dyed(haematoxylin, eosin)
    (found,) = measure(tile[None], np.array([0]))
    density = haematoxylin * HED[0] + eosin * HED[1]
    expected = [haematoxylin, eosin, density[2] / density.sum(), tile.mean() / 255]
    assert found == pytest.approx(expected, abs=0.01)


def test_glass_has_no_stain_and_does_not_dilute_that_of_tissue() -> None:
    half = dyed(0.5, 0.2)
    half[:32] = 245
    glass = np.full_like(half, 245)
    found = measure(np.stack([half, glass]), np.array([0, 1]))
    assert found[0, :3] == pytest.approx(measure(dyed(0.5, 0.2)[None], np.array([0]))[0, :3])
    assert np.isnan(found[1, :3]).all()
    assert found[1, 3] == pytest.approx(245 / 255)
    assert list(summarise(found[1:]).numbers) == ["brightness"]


def test_a_sample_is_spread_over_all_rows_and_always_the_same() -> None:
    rows = np.random.default_rng(0).permutation(5000)[:4321]
    found = sample(rows)
    assert len(found) == MOST_TILES
    assert set(found) <= set(rows)
    assert np.array_equal(found, sample(rows[::-1]))
    assert np.diff(np.searchsorted(np.sort(rows), found)).max() <= 5
    assert np.array_equal(sample(np.array([4, 2])), [2, 4])


def test_a_summary_is_numpys_and_survives_a_file() -> None:
    measured = np.random.default_rng(0).normal(size=(300, 4))
    measured[7, :3] = np.nan
    stain = summarise(measured)
    assert stain.tiles == 300
    for place, name in enumerate(NUMBERS):
        values = measured[~np.isnan(measured[:, place]), place]
        spread = stain.numbers[name]
        assert (spread.mean, spread.sd) == pytest.approx((values.mean(), values.std()))
        assert (spread.low, spread.high) == pytest.approx(tuple(np.quantile(values, [0.005, 0.995])))
    assert Stain.from_json(json.loads(json.dumps(stain.to_json()))) == stain


def test_tiles_outside_the_training_tiles_range_are_counted() -> None:
    generator = np.random.default_rng(0)
    training = summarise(generator.normal(size=(1000, 4)))
    alike = differences(training, generator.normal(size=(1000, 4)))
    assert all(difference.outside < 0.03 for difference in alike)
    moved = generator.normal(size=(1000, 4)) + np.array([0, 0, 3, 0])
    by_name = {difference.number: difference for difference in differences(training, moved)}
    assert by_name["blue"].outside > 0.5
    assert by_name["eosin"].outside < FAR
    assert "blue" in str(by_name["blue"])
    assert "mean 3.0" in str(by_name["blue"])
    missing = moved.copy()
    missing[:, :3] = np.nan
    assert [difference.number for difference in differences(training, missing)] == ["brightness"]
