"""A perceptual hash of a tile: near duplicates differ in few of its 64 bits."""

import numpy as np
from PIL import Image

_SIDE, _KEPT = 32, 8
# Rows 1-8 of the orthonormal DCT-II of length 32; row 0, the mean, says nothing about structure.
_DCT = np.sqrt(2 / _SIDE) * np.cos(np.pi * np.outer(np.arange(1, _KEPT + 1), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


def phash(image: Image.Image) -> str:
    """64-bit DCT hash of an image, as 16 hex digits (Zauner 2010, section 3.2.1).

    The image is averaged down to 32 x 32 and made grey; of the 8 x 8 lowest frequencies, less the constant ones,
    a bit says whether a coefficient lies above their median. A blank image gives zeros.
    """
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    low = (_DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T).round(6)  # rounded: a blank tile has no noise bits
    return np.packbits(low > np.median(low)).tobytes().hex()
