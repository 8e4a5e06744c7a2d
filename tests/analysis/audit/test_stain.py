from __future__ import annotations

import numpy as np
import pytest

from analysis.audit.stain import angle_between, estimate_stain
from tests.analysis.audit.made_tiles import HAEMATOXYLIN, glass, stained
from trainer.tiles.colour import HED


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def pixels(haematoxylin: np.ndarray, eosin: np.ndarray, seed: int = 0) -> np.ndarray:
    """20,000 pixels, some of one stain alone."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.3, 1.0, (2, 20_000, 1, 1))
    amounts[0, :2000] = 0.0
    amounts[1, 2000:4000] = 0.0
    return stained(amounts[0, ..., 0], amounts[1, ..., 0], np.stack([unit(haematoxylin), unit(eosin)])).reshape(-1, 3)


@pytest.mark.parametrize(
    ("haematoxylin", "eosin"),
    [(HAEMATOXYLIN, np.array([0.2, 0.9, 0.35])), (np.array([0.56, 0.72, 0.41]), np.array([0.27, 0.88, 0.38]))],
)
def test_the_stains_that_pixels_were_mixed_from_are_found(haematoxylin: np.ndarray, eosin: np.ndarray) -> None:
    stain = estimate_stain(pixels(haematoxylin, eosin))
    assert stain is not None
    assert angle_between(stain.haematoxylin, haematoxylin) < 1.5
    assert angle_between(stain.eosin, eosin) < 1.5
    assert stain.strength == pytest.approx([1.0, 1.0], abs=0.05)
    assert np.linalg.norm([stain.haematoxylin, stain.eosin], axis=1) == pytest.approx([1, 1])


def test_eosin_that_hardly_takes_red_is_no_glass() -> None:
    """Ruifrok and Johnston's own stains, 3,000 pixels of each alone: their eosin has a fourteenth of its density in
    red."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.3, 1.0, (2, 20_000, 1))
    amounts[0, :3000] = amounts[1, 3000:6000] = 0.0
    vectors = np.stack([unit(HED[0]), unit(HED[1])])
    stain = estimate_stain(stained(amounts[0], amounts[1], vectors).reshape(-1, 3))
    assert stain is not None
    assert angle_between(stain.haematoxylin, HED[0]) < 0.5
    assert angle_between(stain.eosin, HED[1]) < 0.5


def test_weaker_staining_is_strength_and_no_other_direction() -> None:
    strong = pixels(HAEMATOXYLIN, np.array([0.2, 0.9, 0.35]))
    weak = np.rint(255 * (strong / 255) ** 0.7).astype(np.uint8)
    one, other = estimate_stain(strong), estimate_stain(weak)
    assert one is not None
    assert other is not None
    assert angle_between(one.haematoxylin, other.haematoxylin) < 1.5
    assert other.strength / one.strength == pytest.approx([0.7, 0.7], rel=0.05)


def test_glass_and_a_single_colour_have_no_stain() -> None:
    assert estimate_stain(glass(10).reshape(-1, 3)) is None
    assert estimate_stain(np.full((1000, 3), 90, np.uint8)) is None
    assert estimate_stain(np.empty((0, 3), np.uint8)) is None


def test_angles() -> None:
    assert angle_between(np.array([1.0, 0, 0]), np.array([0, 2.0, 0])) == pytest.approx(90)
    assert angle_between(np.array([1.0, 1, 0]), np.array([2.0, 2, 0])) == pytest.approx(0, abs=1e-4)
