"""What lies in the cells of a map: nuclei, fibres and glass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.gradcam import Box, per_cell
from analysis.map_tests.fibres import coherence
from analysis.map_tests.stains import (
    BINS,
    EOSIN,
    HAEMATOXYLIN,
    histogram,
    otsu,
    stain_amounts,
)
from trainer.tiles.colour import is_glass, optical_density


@dataclass(frozen=True)
class Contents:
    """Of each cell of N tiles' maps, (N, h, w)."""

    nuclei: NDArray[np.float64]
    """The share of its area that is nuclear."""
    fibres: NDArray[np.float64]
    """Mean coherence of the eosin channel; glass counts as 0."""
    glass: NDArray[np.float64]
    """The share of its area that is glass."""


def nuclear_threshold(batches: Iterable[NDArray[np.uint8]]) -> float:
    """The amount of haematoxylin above which a pixel is nuclear: Otsu's, once for the tissue of all tiles (N, H, W, 3).

    NaN where there is no tissue, or only of one amount.
    """
    counts = np.zeros(BINS, dtype=np.int64)
    for tiles in batches:
        density = optical_density(tiles)
        counts += histogram(stain_amounts(density)[~is_glass(density)][:, HAEMATOXYLIN])
    return otsu(counts)


def contents(tiles: NDArray[np.uint8], threshold: float, grid: tuple[int, int], box: Box) -> Contents:
    """What lies in the cells of maps of `grid` cells over `box` of tiles (N, H, W, 3)."""
    density = optical_density(tiles)
    amounts, glass = stain_amounts(density), is_glass(density)
    return Contents(
        nuclei=per_cell((amounts[..., HAEMATOXYLIN] > threshold) & ~glass, grid, box),
        fibres=per_cell(np.where(glass, 0, coherence(amounts[..., EOSIN])), grid, box),
        glass=per_cell(glass, grid, box),
    )
