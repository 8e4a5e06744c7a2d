"""Which colours a stain has: Macenko's estimate from pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.tiles.colour import is_glass, optical_density

Floats = NDArray[np.float64]
TAIL = 1.0
"""Percent of the pixels that may lie outside of the two stains' directions."""
FEWEST = 500
"""Pixels of tissue without which there is no estimate."""


@dataclass(frozen=True)
class Stain:
    """Optical densities (log10) of red, green and blue of haematoxylin and eosin, each of length 1, and how much of
    them the strongest stained pixels hold."""

    haematoxylin: Floats
    eosin: Floats
    strength: Floats
    """(2,): the 99th percentile of the amount of each, optical density."""


def estimate_stain(pixels: NDArray[np.uint8]) -> Stain | None:
    """The two stains of some pixels (N, 3); None where too few show tissue, or their colours do not spread.

    Macenko et al., ISBI 2009: optical densities of tissue lie in the plane of their two largest components, between the
    directions of the two stains, which are read off where 1 % of the pixels lie beyond. Of both, haematoxylin is the
    one that takes more of the red. Tissue is what is not `colour.is_glass`. A third colour (pigment, ink) is taken for
    one of the two.
    """
    density = optical_density(pixels).astype(np.float64)
    tissue = density[~is_glass(density)]
    if len(tissue) < FEWEST:
        return None
    _, axes = np.linalg.eigh(np.cov(tissue.T))
    plane = axes[:, [2, 1]] * np.where(axes[:, [2, 1]].sum(axis=0) < 0, -1, 1)
    angle = np.arctan2(*(tissue @ plane).T[::-1])
    low, high = np.percentile(angle, [TAIL, 100 - TAIL])
    if high - low < np.radians(1):
        return None
    stains = np.stack([plane @ [np.cos(each), np.sin(each)] for each in (low, high)])
    if stains[0, 0] < stains[1, 0]:
        stains = stains[::-1]
    amounts = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    return Stain(stains[0], stains[1], np.percentile(amounts, 99, axis=1))


def angle_between(one: Floats, other: Floats) -> float:
    """Degrees between two directions."""
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
