"""Deletion and insertion: does the class go when the hottest parts of its tile go, and come when they come?

Petsiuk, Das and Saenko, BMVC 2018 (arXiv:1806.07421). Pixels are taken in the order of the map, bilinear on the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from analysis.gradcam import on_tile
from analysis.map_tests.nulls import surrogates

Floats = NDArray[np.float64]

ORDERS = OWN, SMOOTH, CENTRE = "own map", "random map as smooth", "centre map"
FILLS = BLURRED, MEAN = "blurred", "mean colour"
WAYS = DELETION, INSERTION = "deletion", "insertion"
STEPS = 6
"""Equal parts that a tile is taken away in."""
BLUR = 20
"""A blur's standard deviation is this part of the input's side: 11 px of 224, wider than a nucleus."""
SHARES = np.linspace(0, 1, STEPS + 1)


@dataclass(frozen=True)
class Curves:
    """Probabilities of the class asked for, (N, orders, fills, ways, STEPS + 1), at `SHARES` of the input."""

    probabilities: Floats
    images: int
    """That went through the network."""

    @property
    def areas(self) -> Floats:
        """Area under each curve, (N, orders, fills, ways)."""
        return np.asarray(np.trapezoid(self.probabilities, SHARES, axis=-1))


@torch.inference_mode()
def perturb(
    model: nn.Module, images: Tensor, maps: NDArray[np.floating], labels: NDArray[np.int64], seed: int
) -> Curves:
    """Deletes and inserts by each map, by a random map as smooth, and from the centre outwards.

    Args:
        model: images to logits.
        images: (N, 3, S, S), as the network sees them.
        maps: (N, h, w); where a map is even, its random map decides.
        labels: (N,) the classes whose maps these are.
        seed: of the random maps.
    """
    places = [_places(order) for order in zip(*_orders(maps, images.shape[-1], seed), strict=True)]
    ranks = torch.from_numpy(np.stack(places)).unsqueeze(2)  # (N, orders, 1, S, S)
    fills = _fills(images)
    chosen = torch.from_numpy(labels)[:, None]

    def probability(shown: Tensor) -> Floats:
        return np.asarray(model(shown).double().softmax(dim=1).gather(1, chosen)[:, 0])

    found = np.empty((len(images), len(ORDERS), len(FILLS), len(WAYS), STEPS + 1))
    whole, passes = probability(images), 1
    for order in range(len(ORDERS)):
        for number, fill in enumerate(fills):
            nothing = probability(fill) if order == 0 else found[:, 0, number, 0, -1]
            passes += order == 0
            found[:, order, number, :, 0] = np.stack([whole, nothing], axis=1)
            found[:, order, number, :, -1] = np.stack([nothing, whole], axis=1)
            for step in range(1, STEPS):
                taken = ranks[:, order] < SHARES[step] * images.shape[-1] ** 2
                found[:, order, number, 0, step] = probability(torch.where(taken, fill, images))
                found[:, order, number, 1, step] = probability(torch.where(taken, images, fill))
                passes += 2
    return Curves(found, passes * len(images))


def _orders(maps: NDArray[np.floating], size: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """The maps of the three orders on the input's pixels, (N, 2, S, S): heat, and what decides where heat is equal."""
    random = _enlarged(surrogates(maps, np.random.default_rng(seed)), size)
    own = _enlarged(maps, size)
    axis = (np.arange(size) + 0.5) / size - 0.5
    centre = np.broadcast_to(-np.hypot(axis[:, None], axis), own.shape)
    return np.stack([own, random], 1), np.stack([random, centre], 1), np.stack([centre, random], 1)


def _enlarged(maps: NDArray[np.floating], size: int) -> Floats:
    return np.stack([on_tile(cells, (size, size), (0.0, 0.0, float(size), float(size))) for cells in maps])


def _places(orders: tuple[Floats, ...]) -> NDArray[np.int64]:
    """When each pixel's turn comes, from 0, for each order: (orders, S, S) of `_orders` of one tile."""
    places = np.empty((len(orders), orders[0][0].size), dtype=np.int64)
    for place, (heat, tie) in zip(places, orders, strict=True):
        place[np.lexsort((-tie.ravel(), -heat.ravel()))] = np.arange(heat.size)
    return places.reshape(len(orders), *orders[0][0].shape)


def _fills(images: Tensor) -> tuple[Tensor, Tensor]:
    """What stands where something was taken away: the image blurred, and its mean colour, (N, 3, S, S) each."""
    sigma = images.shape[-1] / BLUR
    blurred = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(blurred), images.mean(dim=(2, 3), keepdim=True).expand_as(images)
