"""What a colour absorbs; and how augmentation changes those of a batch: stain, brightness, contrast, saturation and
hue, each tile's own.

Images are (N, 3, S, S) float32 in [0, 1], before and after.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CONTRAST, SATURATION = 1, 2  # brightness is 0
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of haematoxylin, eosin and DAB (Ruifrok & Johnston, Anal Quant Cytol Histol
23:291, 2001)."""
DARKEST = 1 / 255
"""What black counts as, which would have no optical density: the darkest that 8 bits tell from it."""
GLASS = 0.09
"""Optical density (log10) below which a channel counts as not absorbed: brighter than 207 of 255, which is where
Macenko et al. (ISBI 2009) part tissue from background (0.15 in natural logarithms below a white of 240)."""
_DENSITY = -np.log10(np.maximum(np.arange(256) / 255, DARKEST)).astype(np.float32)


def optical_density(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density (log10) of each channel: (..., 3) of (..., 3). Black counts as 1/255, white is 0."""
    density: NDArray[np.float32] = _DENSITY[levels]
    return density


def is_glass(density: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Pixels (...) of which no channel (..., 3) absorbs as much as `GLASS`.

    Macenko et al. drop a pixel of which any channel absorbs less, and with it eosin, which leaves red as it is.
    """
    return np.asarray((density < GLASS).all(axis=-1))


def jitter_stain(image: Tensor, shifts: Tensor) -> Tensor:
    """Changes how much each tile took up of three stains: amounts become `(1 + shifts[:, 0]) * amount + shifts[:, 1]`.

    Amounts are optical densities (log10) taken apart by `HED`, and may be negative: where nothing is shifted, nothing
    changes but black. Tellez et al., IEEE Trans Med Imaging 37:2126 (2018), arXiv:1808.05896.

    Args:
        image: as the module says.
        shifts: (N, 2, 3), relative and absolute, of haematoxylin, eosin and DAB.
    """
    hed, inverse = (torch.from_numpy(matrix).to(shifts) for matrix in (HED, np.linalg.inv(HED)))
    # One linear map of logarithms a tile: apart, scaled and together again.
    mixed = inverse @ ((1 + shifts[:, 0, :, None]) * hed)
    added = -math.log(10) * shifts[:, 1] @ hed
    logarithms = image.clamp(min=DARKEST).log().flatten(2)
    return torch.baddbmm(added[:, :, None], mixed.transpose(1, 2), logarithms).exp().clamp(max=1).view_as(image)


def jitter_colour(
    image: Tensor, factors: Tensor, order: Tensor, hue: NDArray[np.float32], hue_turn: NDArray[np.int64]
) -> Tensor:
    """Brightness, contrast, saturation and hue, each tile's in its own order: torchvision's `ColorJitter`.

    Args:
        image: as the module says.
        factors: (N, 3), of brightness, contrast and saturation.
        order: (N, 3), which of these comes first, second, third.
        hue: (N,), by which share of the colour circle hue is turned.
        hue_turn: (N,), how many of the three come before hue.
    """
    passes = order.shape[1]
    for turn in range(passes + 1):
        # Hue costs more than the others together: it is computed for the tiles whose turn it is, and no others.
        now = np.flatnonzero((hue_turn == turn) & (hue != 0))
        if len(now):
            rows, shifts = (torch.from_numpy(a).to(image.device, non_blocking=True) for a in (now, hue[now]))
            image = image.index_copy(0, rows, shift_hue(image[rows], shifts))
        if turn < passes:
            image = _blend(image, factors, order[:, turn])
    return image


def _blend(image: Tensor, factors: Tensor, kind: Tensor) -> Tensor:
    """One pass: blends with black, with the tile's mean grey or with its grey image, and clamps.

    Passes cannot be folded into one matrix, since the clamps between them matter.
    """
    factor = factors.gather(1, kind[:, None])[:, :, None, None]
    kind = kind[:, None, None, None]
    grey = 0.2989 * image[:, 0:1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:3]
    mean = grey.mean(dim=(2, 3), keepdim=True)
    other = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, torch.zeros_like(mean)))
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def shift_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turns each tile's colours by `shift` (N,) of the circle; the largest and the smallest channel's values stay."""
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    span = torch.where(chroma == 0, 1, chroma)  # grey has no hue, and gets none
    sixths = torch.where(
        value == red,
        (green - blue) / span,
        torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    turned = (sixths + 6 * shift[:, None, None]).unsqueeze(1)
    # Each channel follows the same trapezoid along the circle, a third of it behind the one before.
    place = (torch.tensor([5, 3, 1], device=image.device)[:, None, None] + turned) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp(0, 1)
