"""How strongly the 8-pixel grid of JPEG's blocks shows in a tile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 8
QUANTUM = 0.05
"""Grey levels added to every mean step, so that where all steps are next to nothing no ratio comes of rounding."""


def blockiness(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The step across block boundaries over the step elsewhere: 1 where there is no grid, more where it shows.

    After Wang, Sheikh and Bovik (ICIP 2002), who compare the mean absolute step between neighbouring pixels at block
    boundaries with that within blocks. Geometric means of both directions.

    Args:
        grey: (N, H, W).

    Returns:
        (N, 2): for a grid that begins in the tile's corner, as of a tile that was itself stored as JPEG; and for a grid
        at any offset, as of a slide that was stored as JPEG before tiles were cut from it. The latter compares the
        offset of the largest step with that of the next: with their mean, chance alone would look like a grid.
    """
    directions = [_steps_by_offset(grey, axis) for axis in (1, 2)]
    shown: NDArray[np.float64] = np.exp(np.mean([np.log(_ratios(steps + QUANTUM)) for steps in directions], axis=0))
    return shown


def _steps_by_offset(grey: NDArray[np.uint8], axis: int) -> NDArray[np.float64]:
    """(N, 8) mean absolute step onto rows or columns 0, 8, 16, ..., onto 1, 9, 17, ..., and so on."""
    steps = np.abs(np.diff(grey.astype(np.int16), axis=axis)).mean(axis=3 - axis)
    offsets = np.arange(1, grey.shape[axis]) % BLOCK
    if len(offsets) < BLOCK:  # a tile of one block has no boundary
        return np.zeros((len(grey), BLOCK))
    one_hot = offsets[:, None] == np.arange(BLOCK)
    means: NDArray[np.float64] = steps @ (one_hot / one_hot.sum(axis=0))
    return means


def _ratios(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(steps, axis=1)
    return np.stack([steps[:, 0] / steps[:, 1:].mean(axis=1), ordered[:, -1] / ordered[:, -2]], axis=1)
