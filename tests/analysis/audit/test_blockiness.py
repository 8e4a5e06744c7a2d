from __future__ import annotations

import numpy as np
import pytest

from analysis.audit.blockiness import QUANTUM, blockiness
from tests.analysis.audit.made_tiles import compressed, tissue


def grey(tiles: np.ndarray) -> np.ndarray:
    return tiles.mean(axis=3).round().astype(np.uint8)


def by_hand(tile: np.ndarray) -> tuple[float, float]:
    """The definition, pixel by pixel."""
    corner, anywhere = 1.0, 1.0
    for picture in (tile.astype(float), tile.T.astype(float)):
        steps = [[] for _ in range(8)]
        for column in range(1, picture.shape[1]):
            steps[column % 8].append(np.abs(picture[:, column] - picture[:, column - 1]).mean())
        means = [np.mean(each) + QUANTUM for each in steps]
        corner *= means[0] / np.mean(means[1:])
        *_, second, first = sorted(means)
        anywhere *= first / second
    return corner**0.5, anywhere**0.5


def test_it_is_what_its_definition_says() -> None:
    tiles = grey(np.stack([compressed(tile, 20) for tile in tissue(4, size=48)]))[:, :40]
    assert blockiness(tiles) == pytest.approx(np.array([by_hand(tile) for tile in tiles]))


def test_compression_shows_more_the_stronger_it_is() -> None:
    tiles = tissue(20)
    medians = [
        np.median(blockiness(grey(np.stack([compressed(tile, quality) for tile in tiles]))), axis=0)
        for quality in (90, 50, 10)
    ]
    assert (np.diff([np.median(blockiness(grey(tiles)), axis=0), *medians], axis=0)[1:] > 0).all()
    assert np.median(blockiness(grey(tiles)), axis=0) == pytest.approx([1, 1.02], abs=0.03)


def test_a_grid_that_does_not_begin_in_the_corner_shows_at_any_offset() -> None:
    slide = np.stack([compressed(tile, 10) for tile in tissue(10, size=96)])
    corner, anywhere = blockiness(grey(slide[:, 5:69, 3:67])).T
    assert (anywhere > 1.3).all()
    assert (corner < 1.05).all()


@pytest.mark.parametrize("shape", [(8, 8), (9, 30), (64, 64)])
def test_flat_tiles_have_no_grid(shape: tuple[int, int]) -> None:
    assert blockiness(np.full((2, *shape), 240, np.uint8)) == pytest.approx(np.ones((2, 2)))
