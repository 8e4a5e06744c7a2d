"""Where in a tile the evidence for a class lies: arrays in, arrays out.

Grad-CAM (Selvaraju et al., ICCV 2017) at the last stage of a network that ends in global average pooling and a linear
head needs no backward pass: the gradient of class c's logit with respect to feature k is head[c, k] / (h * w)
everywhere, so the maps are those of CAM (Zhou et al., CVPR 2016), rectified, for all classes from one forward pass.
Before it is rectified a map's sum, with the head's bias, is the logit: a cell's value is what that cell adds to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.model import cut

Box = tuple[float, float, float, float]
Floats = NDArray[np.float32]

BATCH = 16


def class_maps(features: NDArray[np.floating], head: NDArray[np.floating]) -> Floats:
    """Grad-CAM of every class: (N, C, h, w), not negative, in units of the logit.

    Args:
        features: (N, K, h, w), what goes into the global average pooling.
        head: (C, K), the weights of the linear layer after it.
    """
    cells = features.shape[2] * features.shape[3]
    maps = np.einsum("ck,nkij->ncij", head, features, optimize=True) / cells
    rectified: Floats = np.maximum(maps, 0).astype(np.float32)
    return rectified


def head_weights(model: nn.Sequential) -> Floats:
    """Weights (C, K) of the linear layer that a network ends in."""
    return np.asarray(model.get_submodule("fc").get_parameter("weight").detach())


def centred(head: Floats) -> Floats:
    """The head (C, K) whose maps speak for a class against the mean of all classes.

    Probabilities do not change where all logits rise alike, but plain maps do; these do not.
    """
    return np.asarray(head - head.mean(axis=0))


def maps_of_tiles(
    model: nn.Sequential, tiles: NDArray[np.uint8], transform: Callable[[Tensor], Tensor], *, centre: bool = False
) -> Floats:
    """Grad-CAM of every class at the last stage, for tiles (N, H, W, 3) as `transform` shows them to the network.

    Args:
        model: `trainer.model.build`'s network, in evaluation mode.
        tiles: source pixels.
        transform: source pixels to the network's input, e.g. the evaluation transform.
        centre: for each class against the mean of all (`centred`).
    """
    trunk, _ = cut(model, depth=0)
    weights = centred(head_weights(model)) if centre else head_weights(model)
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(tiles), BATCH)
        return np.concatenate([class_maps(trunk(transform(batch)).numpy(), weights) for batch in batches])


def on_tile(class_map: NDArray[np.floating], tile_size: tuple[int, int], box: Box) -> NDArray[np.float64]:
    """The map (h, w) at every pixel of its tile (H, W), NaN at pixels that the network did not see.

    Bilinear between the centres of the map's cells and constant beyond the outermost, as
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.

    Args:
        class_map: one map, which covers `box` evenly.
        tile_size: height and width of the tile, px.
        box: top, left, height and width of what the network saw, in source pixels.
    """
    top, left, height, width = box
    rows = _interpolation(class_map.shape[0], tile_size[0], top, height)
    columns = _interpolation(class_map.shape[1], tile_size[1], left, width)
    heat: NDArray[np.float64] = rows @ class_map @ columns.T
    return heat


def _interpolation(cells: int, pixels: int, start: float, length: float) -> NDArray[np.float64]:
    """Weights (pixels, cells) of linear interpolation along one side; a row of NaN for a pixel outside of the box."""
    place = (np.arange(pixels) + 0.5 - start) / length
    position = np.clip(place * cells - 0.5, 0, cells - 1)
    weights: NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(position[:, None] - np.arange(cells)))
    weights[(place < 0) | (place > 1)] = np.nan
    return weights


def per_cell(pixels: NDArray[np.generic], grid: tuple[int, int], box: Box) -> NDArray[np.float64]:
    """The mean of what lies in each cell of a map: (N, h, w) of pixels (N, H, W).

    A pixel that lies in two cells counts in each by its part there; one that is outside of the box counts nowhere. A
    cell without pixels is NaN.

    Args:
        pixels: numbers, or whether something is there.
        grid: h and w; the cells part `box` evenly.
        box: as of `on_tile`.
    """
    top, left, height, width = box
    rows = _cover(grid[0], pixels.shape[1], top, height)
    columns = _cover(grid[1], pixels.shape[2], left, width)
    means: NDArray[np.float64] = rows @ pixels.astype(np.float64) @ columns.T
    return means


def _cover(cells: int, pixels: int, start: float, length: float) -> NDArray[np.float64]:
    """Weights (cells, pixels) of the mean over each cell along one side."""
    edges = start + length * np.arange(cells + 1) / cells
    first = np.arange(pixels)
    covered = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    weights = np.maximum(covered, 0.0)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), np.nan)
