"""How tiles are stained, in four numbers a tile, and how far one set of tiles is from another.

Of a tile's tissue, which is where light is dimmed to four fifths (a mean optical density of 0.1, log10):

- `haematoxylin`, `eosin`: the mean amounts of these stains, taken apart by the matrix of Ruifrok and Johnston
  (`colour.HED`);
- `blue`: the share of blue in the optical density of red, green and blue together, which depends on dyes and scanner,
  and little on the tissue;

and of the whole tile `brightness`: the mean of its pixels, black being 0 and white 1.

Two sets of tiles differ as soon as their tissues do, since lymphocytes are bluer than fat. So what is asked is not
whether the means agree, but how many of the new tiles lie where hardly any of the training tiles did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.tiles.colour import HED, optical_density

NUMBERS = ("haematoxylin", "eosin", "blue", "brightness")
WORDS = {"blue": "the share of blue in what tissue absorbs"}
"""What a number is called in a sentence, where it is not its name."""
TISSUE = 0.1
"""Mean optical density of a pixel of tissue: of the three channels together, where `colour.GLASS` is of each."""
LEAST_TISSUE = 0.01
"""Share of a tile below which it has no stain to speak of: haematoxylin, eosin and blue are NaN."""
MOST_TILES = 1000
SIDE = 64
"""About how many pixels of a tile are looked at in each direction, evenly spread."""
RANGE = (0.005, 0.995)
FAR = 0.2
"""The share of tiles outside the range of 99 % of the training tiles above which a stain is called far: more than among
the tiles of a single slide or class of the same laboratory, as measured (docs/findings.md)."""


@dataclass(frozen=True)
class Spread:
    """How a number is distributed over tiles: mean, standard deviation, and the range of 99 % of the tiles."""

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Stain:
    """The stain of a set of tiles: how many were looked at, and each of `NUMBERS` over those that have it."""

    tiles: int
    numbers: dict[str, Spread]

    def to_json(self) -> dict[str, Any]:
        """As `best.json` keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Stain:
        """What `to_json` has kept."""
        return cls(kept["tiles"], {name: Spread(**spread) for name, spread in kept["numbers"].items()})


@dataclass(frozen=True)
class Difference:
    """How tiles differ from training's in a number: `outside` is the share of them outside the range of 99 % of those.

    `mean` is over those that have it.
    """

    number: str
    outside: float
    mean: float
    training: Spread

    def __str__(self) -> str:
        """In a sentence."""
        return (
            f"{self.outside:.0%} of the tiles are outside the range of 99 % of the training tiles in "
            f"{WORDS.get(self.number, self.number)} (mean {self.mean:.3f}; training {self.training.mean:.3f}, "
            f"sd {self.training.sd:.3f})"
        )


def sample(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `MOST_TILES` rows of a store, evenly spread over those given: in a store, tiles lie in random order."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_TILES)).round().astype(np.int64))
    return np.sort(rows)[places]


def measure(tiles: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 4) `NUMBERS` of the tiles at `rows` of (N, H, W, 3); NaN where a tile has no tissue."""
    step = max(1, min(tiles.shape[1:3]) // SIDE)
    measured = np.full((len(rows), len(NUMBERS)), np.nan)
    for place, row in enumerate(rows):
        measured[place] = _measure(tiles[row, ::step, ::step].reshape(-1, 3))
    return measured


def _measure(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    """`NUMBERS` of one tile's (n, 3) pixels."""
    density = optical_density(pixels).astype(np.float64)
    brightness = float(pixels.mean() / 255)
    tissue = density[density.mean(axis=1) >= TISSUE]
    if len(tissue) < LEAST_TISSUE * len(density):
        return np.nan, np.nan, np.nan, brightness
    haematoxylin, eosin, _ = (tissue @ np.linalg.inv(HED)).mean(axis=0)
    blue = (tissue[:, 2] / tissue.sum(axis=1)).mean()
    return float(haematoxylin), float(eosin), float(blue), brightness


def summarise(measured: NDArray[np.float64]) -> Stain:
    """The stain of (n, 4) measured tiles; a number that none of them has is left out."""
    there = {name: column[~np.isnan(column)] for name, column in zip(NUMBERS, measured.T, strict=True)}
    return Stain(len(measured), {name: _spread(column) for name, column in there.items() if len(column)})


def _spread(values: NDArray[np.float64]) -> Spread:
    low, high = np.quantile(values, RANGE)
    return Spread(float(values.mean()), float(values.std()), float(low), float(high))


def differences(training: Stain, measured: NDArray[np.float64]) -> list[Difference]:
    """How far (n, 4) measured tiles are from the training tiles, in each number that both have."""
    found = []
    for name, column in zip(NUMBERS, measured.T, strict=True):
        values = column[~np.isnan(column)]
        if name in training.numbers and len(values):
            spread = training.numbers[name]
            outside = float(((values < spread.low) | (values > spread.high)).sum() / len(column))
            found.append(Difference(name, outside, float(values.mean()), spread))
    return found
