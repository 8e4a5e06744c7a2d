"""Where a tile is made of fibres that run alongside each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRADIENT_PX = 1.0
WINDOW_PX = 6.0
"""Standard deviations of the Gaussians of the gradient and of the neighbourhood, px of the tile."""


def coherence(eosin: NDArray[np.floating]) -> NDArray[np.float32]:
    """How much the gradients around each pixel agree in direction, 0 to 1: (N, H, W) of amounts (N, H, W).

    It is (a - b) / (a + b) of the structure tensor's eigenvalues a >= b (Bigün and Granlund, ICCV 1987; as "coherency"
    in Rezakhaniha et al., Biomech Model Mechanobiol 11:461, 2012). Where nothing changes it is 0.
    """
    field = np.asarray(eosin, dtype=np.float32)
    down, right = (_gaussian(field, GRADIENT_PX, order) for order in ((1, 0), (0, 1)))
    vertical, horizontal, mixed = (
        _gaussian(product, WINDOW_PX, (0, 0)) for product in (down * down, right * right, down * right)
    )
    whole = vertical + horizontal
    apart = np.hypot(horizontal - vertical, 2 * mixed)
    ratio: NDArray[np.float32] = np.zeros_like(whole)
    np.divide(apart, whole, out=ratio, where=whole > np.finfo(np.float32).tiny * 1e6)
    return np.clip(ratio, 0, 1)


def _gaussian(field: NDArray[np.float32], sigma: float, order: tuple[int, int]) -> NDArray[np.float32]:
    """Each picture (N, H, W) smoothed, or its smoothed derivative."""
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(field, (0, sigma, sigma), order=(0, *order), mode="nearest")
    return smooth
