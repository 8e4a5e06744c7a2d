"""Maps that know nothing of the tile, of the class, or of what was learned: what a map is to be better than."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.model import STAGES, build

Floats = NDArray[np.float64]

SEED = 0
HEADS = 5
"""Untrained heads; what is measured of their maps is averaged."""


def turned(maps: NDArray[np.floating]) -> NDArray[np.floating]:
    """Maps (N, h, h) turned by 90, 180 and 270 degrees: (3, N, h, h)."""
    return np.stack([np.rot90(maps, quarters, axes=(-2, -1)) for quarters in (1, 2, 3)])


def untrained_heads(classes: int, features: int) -> NDArray[np.float32]:
    """Weights (HEADS, classes, features) as a linear layer begins with in torch: even within 1 / sqrt(features)."""
    limit = features**-0.5
    drawn = np.random.default_rng(SEED).uniform(-limit, limit, (HEADS, classes, features))
    return drawn.astype(np.float32)


class Cascade:
    """A trunk, and the same with its upper stages as before any training (Adebayo et al., NeurIPS 2018).

    Stages lose what they learned from the last on, one more at a time, so that a map that does not change was not made
    of what was learned.
    """

    def __init__(self, model: nn.Sequential):
        self.trained = _stages(model)
        classes = model.get_submodule("fc").get_parameter("weight").shape[0]
        self.untrained = _stages(build(classes, SEED).eval())

    def features(self, images: Tensor) -> tuple[Tensor, Iterator[tuple[str, Tensor]]]:
        """What goes into the global pooling, and the same with each stage and those after it untrained, last first.

        What is below a stage is computed once.
        """
        reached = [images]
        for stage in self.trained:
            reached.append(stage(reached[-1]))
        return reached[-1], self._untrained(reached)

    def _untrained(self, reached: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        for first in reversed(range(len(self.untrained))):
            here = reached[first]
            for stage in self.untrained[first:]:
                here = stage(here)
            yield STAGES[first], here


def _stages(model: nn.Sequential) -> list[nn.Sequential]:
    """conv1 to layer4, each with what belongs to it."""
    names = [name for name, _ in model.named_children()]
    return [model[start:end] for start, end in pairwise(names.index(stage) for stage in STAGES)]


def surrogates(maps: NDArray[np.floating], rng: np.random.Generator) -> Floats:
    """Random maps (N, h, w) as smooth as `maps` (N, h, w): their Fourier amplitudes with random phases.

    Theiler et al., Physica D 58:77 (1992), in two dimensions; mean and periodic autocorrelation stay.
    """
    amplitudes = np.abs(np.fft.rfft2(maps))
    noise = np.fft.rfft2(rng.normal(size=maps.shape))  # of something real, so the result is real
    phases = noise / np.abs(noise)
    phases[:, 0, 0] = 1
    return np.asarray(np.fft.irfft2(amplitudes * phases, s=maps.shape[1:]))
