"""What colours a tile: how much of each stain, and where a stain is strong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.tiles.colour import HED

Floats = NDArray[np.float32]

HAEMATOXYLIN, EOSIN = 0, 1
BINS = 2000
RANGE = (-1.0, 3.0)
"""Amounts of haematoxylin that a histogram tells apart; what lies beyond counts at its ends."""


def stain_amounts(density: Floats) -> Floats:
    """Amounts of haematoxylin, eosin and DAB (..., 3) in optical densities (..., 3); they may be negative.

    Colour deconvolution with one matrix for all slides (Ruifrok & Johnston, Anal Quant Cytol Histol 23:291, 2001).
    """
    amounts: Floats = density @ np.linalg.inv(HED).astype(np.float32)
    return amounts


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
