"""What colours a tile: how much of each stain, where nothing is but glass, and where a stain is strong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.tiles.colour import DARKEST, HED

Floats = NDArray[np.float32]

GLASS = 0.09
"""Optical density (log10) below which a channel counts as not absorbed: brighter than 207 of 255, which is where
Macenko et al. (ISBI 2009) part tissue from background (0.15 in natural logarithms below a white of 240)."""
HAEMATOXYLIN, EOSIN = 0, 1
BINS = 2000
RANGE = (-1.0, 3.0)
"""Amounts of haematoxylin that a histogram tells apart; what lies beyond counts at its ends."""
_DENSITY = -np.log10(np.maximum(np.arange(256) / 255, DARKEST)).astype(np.float32)


def optical_density(tiles: NDArray[np.uint8]) -> Floats:
    """Optical density (log10) of each channel: (..., 3) of (..., 3). Black counts as 1/255, white is 0."""
    density: Floats = _DENSITY[tiles]
    return density


def stain_amounts(density: Floats) -> Floats:
    """Amounts of haematoxylin, eosin and DAB (..., 3) in optical densities (..., 3); they may be negative.

    Colour deconvolution with one matrix for all slides (Ruifrok & Johnston, Anal Quant Cytol Histol 23:291, 2001).
    """
    amounts: Floats = density @ np.linalg.inv(HED).astype(np.float32)
    return amounts


def is_glass(density: Floats) -> NDArray[np.bool_]:
    """Pixels (...) of which no channel (..., 3) absorbs as much as `GLASS`."""
    return np.asarray((density < GLASS).all(axis=-1))


def histogram(amounts: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many amounts, of any shape, lie in each of `BINS` bins over `RANGE`."""
    counts, _ = np.histogram(np.clip(amounts, *RANGE), bins=BINS, range=RANGE)
    return counts.astype(np.int64)


def otsu(counts: NDArray[np.int64]) -> float:
    """The amount that best parts a `histogram` in two: largest variance between them (Otsu, IEEE Trans SMC 9:62, 1979).

    NaN where all amounts lie in one bin.
    """
    edges = np.linspace(*RANGE, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return float("nan")
    low, high = sums[:-1][parted] / below[parted], (sums[-1] - sums[:-1][parted]) / above[parted]
    between = below[parted] * above[parted].astype(np.float64) * (high - low) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))  # an empty gap is cut in its middle
    return float(edges[1:-1][parted][best].mean())
