"""How stained tissue becomes a picture: a slide's stain vectors, the Beer-Lambert law, and a camera."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trainer.tiles.synthetic.canvas import FIELD_UM, Field

# Optical density in red, green and blue of haematoxylin (first row) and eosin (second row).
# Ruifrok & Johnston, Anal Quant Cytol Histol 23:291 (2001), and the reference of Macenko et al., ISBI 2009.
RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
MACENKO = np.array([[0.563, 0.720, 0.406], [0.216, 0.801, 0.558]])


@dataclass(frozen=True)
class Slide:
    """One slide: its name, how it was stained, and the light that it was scanned with."""

    name: str
    vectors: NDArray[np.float64]  # (2, 3): unit optical density of haematoxylin and eosin
    strength: NDArray[np.float64]  # (2,): factors of the two stains' concentrations
    light: NDArray[np.float64]  # (3,): transmission of empty glass

    @classmethod
    def draw(cls, name: str, rng: np.random.Generator, external: bool = False) -> "Slide":
        """Stain a slide at random; the external laboratory's blue is bluer, its red more orange, its light warmer."""
        blend = rng.uniform(0.2, 0.9)
        vectors = RUIFROK + blend * (MACENKO - RUIFROK) + rng.normal(0, 0.03, (2, 3))
        strength = rng.lognormal(0, 0.15, 2)
        light = np.clip(rng.normal(0.95, 0.01, 3), 0, 1)
        if external:
            vectors += np.array([[0.02, 0.10, -0.16], [0.10, 0.0, 0.16]])
            strength *= np.array([0.75, 1.2])
            light *= np.array([1.0, 0.97, 0.92])
        vectors = np.clip(vectors, 0.01, None)
        return cls(name, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strength, light)


def photograph(
    haematoxylin: Field, eosin: Field, slide: Slide, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the (size, size, 3) picture of two concentration fields (side, side), side a multiple of size.

    Every tile has its own section thickness, stain uptake, exposure and focus, so that a mean colour says
    little about the tissue.
    """
    uptake = slide.strength * rng.lognormal(0, 0.16, 2) * rng.lognormal(0, 0.12)
    absorbed = (uptake[:, None] * slide.vectors).astype(np.float32)
    light = (slide.light * rng.uniform(0.88, 1.04) * rng.normal(1, 0.01, 3)).astype(np.float32)
    density = np.stack([haematoxylin, eosin], axis=-1).astype(np.float32).clip(0) @ absorbed
    picture = light * np.exp(-math.log(10) * density)
    step = len(picture) // size
    picture = picture.reshape(size, step, -1).mean(axis=1).reshape(size, size, step, 3).mean(axis=2)
    focus = rng.uniform(0.3, 0.55) * size / FIELD_UM
    picture = ndimage.gaussian_filter(picture, (focus, focus, 0), truncate=3.0)
    picture += rng.normal(0, 0.008, picture.shape)
    pixels: NDArray[np.uint8] = (picture * 255).clip(0, 255).round().astype(np.uint8)
    return pixels
