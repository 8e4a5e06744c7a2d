"""What a tile looks like to the network: the training augmentations and the evaluation transform, on batches.

Crop, resize and flips are one separable resampling: a tile's output is `rows @ tile @ columns`, where the two small
matrices hold the weights of an antialiased triangle filter over the crop alone. That is what torchvision's
`resized_crop(antialias=True)` computes on floating-point images, for any crop of any source size; here every tile of
a batch has its own. A quarter turn is flips of those matrices and an exchange of rows and columns. What happens to
colours is in `colour.py`.

Random numbers belong to the tile (`seed`, `epoch`, its row in the store), not to the batch, the worker or the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import AugmentSection
from trainer.tiles.colour import jitter_colour, jitter_stain

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, which torchvision's weights expect."""

BLOCK = 256
DRAWS = 32
"""Numbers drawn for each tile: some to spare, so that one more augmentation leaves the others' draws as they are."""
STAIN_DRAWS = 6
CROP_TRIES = 10
ORDERS = np.array(list(permutations(range(3))))
TURNS = np.array([[False, False], [False, True], [True, True], [True, False]])
"""Flips (up-down, left-right) that make a quarter turn of a transposition, and a half turn by themselves, by the number
of quarter turns."""
# Larger sub-batches fall out of a CPU's cache.
CPU_SUBBATCH = 4


@dataclass(frozen=True)
class Draws:
    """What chance decided for each of N tiles. `box` is (N, 4): top, left, height, width in source pixels."""

    box: NDArray[np.float32]
    flip: NDArray[np.bool_]  # (N, 2): up-down, left-right
    jitter: NDArray[np.float32]  # (N, 3): factors of brightness, contrast, saturation
    order: NDArray[np.int64]  # (N, 3): which jitter comes first, second, third
    quarters: NDArray[np.int64]  # (N,): quarter turns, counter-clockwise
    hue: NDArray[np.float32]  # (N,): shift, as a share of the colour circle
    hue_turn: NDArray[np.int64]  # (N,): how many jitters come before it
    stain: NDArray[np.float32]  # (N, 2, 3): relative and absolute shifts of three stains


def draw(rows: NDArray[np.int64], seed: int, epoch: int, tile_size: tuple[int, int], augment: AugmentSection) -> Draws:
    """Draws the augmentation of the tiles at `rows` of a store for one epoch.

    The crop follows torchvision's `RandomResizedCrop`: ten tries of a random area and log-uniform aspect ratio, then
    the largest central crop of an allowed ratio.
    """
    uniform = _uniform(rows, DRAWS, seed, epoch)
    tries, rest = uniform[:, : 2 * CROP_TRIES], uniform[:, 2 * CROP_TRIES :]
    spread = np.array([augment.brightness, augment.contrast, augment.saturation])
    return Draws(
        box=_crop(tries, rest[:, 0:2], tile_size, augment),
        flip=rest[:, 2:4] < (augment.vflip, augment.hflip),
        jitter=(1 + spread * (2 * rest[:, 4:7] - 1)).astype(np.float32),
        order=ORDERS[(rest[:, 7] * len(ORDERS)).astype(np.int64)],
        quarters=(4 * rest[:, 8]).astype(np.int64) * augment.rot90,
        hue=(augment.hue * (2 * rest[:, 9] - 1)).astype(np.float32),
        hue_turn=(4 * rest[:, 10]).astype(np.int64),
        stain=_stain(rows, seed, epoch, augment.stain),
    )


def _uniform(rows: NDArray[np.int64], draws: int, seed: int, epoch: int, *stream: int) -> NDArray[np.float64]:
    """(N, draws) numbers from [0, 1), drawn for whole blocks of rows; another `stream` has others."""
    blocks, where = np.unique(rows // BLOCK, return_inverse=True)
    drawn = [np.random.default_rng([seed, epoch, int(b), *stream]).random((BLOCK, draws)) for b in blocks]
    return np.asarray(np.stack(drawn)[where, rows % BLOCK])


def _stain(rows: NDArray[np.int64], seed: int, epoch: int, spread: float) -> NDArray[np.float32]:
    """Shifts of stains, from a stream of their own: there was no more to spare in the first."""
    if spread == 0:
        return np.zeros((len(rows), 2, 3), np.float32)
    uniform = _uniform(rows, STAIN_DRAWS, seed, epoch, 1)
    return (spread * (2 * uniform - 1)).astype(np.float32).reshape(-1, 2, 3)


def _crop(
    tries: NDArray[np.float64],
    place: NDArray[np.float64],
    tile_size: tuple[int, int],
    augment: AugmentSection,
) -> NDArray[np.float32]:
    height, width = tile_size
    low, high = augment.crop_scale
    log_low, log_high = np.log(augment.crop_ratio)
    area = height * width * (low + (high - low) * tries[:, :CROP_TRIES])
    ratio = np.exp(log_low + (log_high - log_low) * tries[:, CROP_TRIES:])
    crop_w = np.rint(np.sqrt(area * ratio))
    crop_h = np.rint(np.sqrt(area / ratio))
    fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
    first = fits.argmax(axis=1)
    chosen = np.arange(len(tries)), first
    central_h, central_w = _central(height, width, augment.crop_ratio)
    found = fits[chosen]
    h = np.where(found, crop_h[chosen], central_h)
    w = np.where(found, crop_w[chosen], central_w)
    top = np.where(found, np.floor(place[:, 0] * (height - h + 1)), (height - h) // 2)
    left = np.where(found, np.floor(place[:, 1] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.float32)


def _central(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def training_batch(tiles: Tensor, draws: Draws, augment: AugmentSection) -> Tensor:
    """Augments (N, H, W, 3) uint8 tiles as drawn: (N, 3, S, S) float32, normalised, on the tiles' device."""
    flips, lies = draws.flip ^ TURNS[draws.quarters], draws.quarters % 2 == 1
    box, flip, lying, jitter, order, stain = (
        torch.from_numpy(array).to(tiles.device)
        for array in (draws.box, flips, lies, draws.jitter, draws.order, draws.stain)
    )
    out = []
    for part in _subbatches(tiles):
        rows = _filter(box[part, 0], box[part, 2], tiles.shape[1], augment.input_size, flip[part, 0])
        columns = _filter(box[part, 1], box[part, 3], tiles.shape[2], augment.input_size, flip[part, 1])
        image = _resample(tiles[part], rows, columns)
        if augment.rot90:
            image = torch.where(lying[part, None, None, None], image.transpose(2, 3), image)
        if augment.stain:
            image = jitter_stain(image, stain[part])
        image = jitter_colour(image, jitter[part], order[part], draws.hue[part], draws.hue_turn[part])
        out.append(_normalise(image))
    return torch.cat(out)


def evaluation_batch(tiles: Tensor, augment: AugmentSection) -> Tensor:
    """Resizes, crops and normalises (N, H, W, 3) uint8 tiles for evaluation: (N, 3, S, S) float32."""
    box = evaluation_box((int(tiles.shape[1]), int(tiles.shape[2])), augment)
    top, left, height, width = torch.tensor(box, device=tiles.device).unsqueeze(1)
    still = torch.zeros(1, dtype=torch.bool, device=tiles.device)
    # The filter may look beyond the centre crop: torchvision resizes the whole tile, then crops.
    rows = _filter(top, height, tiles.shape[1], augment.input_size, still, whole=True)
    columns = _filter(left, width, tiles.shape[2], augment.input_size, still, whole=True)
    return torch.cat([_normalise(_resample(tiles[part], rows, columns)) for part in _subbatches(tiles)])


def evaluation_box(tile_size: tuple[int, int], augment: AugmentSection) -> tuple[float, float, float, float]:
    """Top, left, height and width, in source pixels, of what the network's input covers of a tile (H, W).

    With `eval_resize` and `eval_crop`, torchvision's `Resize` (shorter side) and `CenterCrop`; else the whole tile.
    """
    height, width = tile_size
    if augment.eval_resize is None or augment.eval_crop is None:
        return 0.0, 0.0, float(height), float(width)
    shorter = min(height, width)
    resized = [int(augment.eval_resize * side / shorter) for side in tile_size]
    starts = [round((side - augment.eval_crop) / 2.0) for side in resized]
    pixel_h, pixel_w = height / resized[0], width / resized[1]
    return (
        starts[0] * pixel_h,
        starts[1] * pixel_w,
        augment.eval_crop * pixel_h,
        augment.eval_crop * pixel_w,
    )


def _subbatches(tiles: Tensor) -> list[slice]:
    size = CPU_SUBBATCH if tiles.device.type == "cpu" else len(tiles)
    return [slice(start, start + size) for start in range(0, len(tiles), max(size, 1))]


def _filter(start: Tensor, extent: Tensor, source: int, target: int, flip: Tensor, whole: bool = False) -> Tensor:
    """(N, target, source) weights that resample `extent` source pixels from `start` on to `target` pixels.

    A triangle as wide as the larger of a source and a target pixel, cut off at the ends of the extent (or, for
    `whole`, of the source alone) and normalised: bilinear where it enlarges, antialiased where it shrinks.
    """
    step = (extent / target)[:, None, None]
    centre = start[:, None, None] + (torch.arange(target, device=start.device)[:, None] + 0.5) * step
    pixel = torch.arange(source, device=start.device) + 0.5
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    if not whole:
        weights = weights * ((pixel > start[:, None, None]) & (pixel < (start + extent)[:, None, None]))
    weights = weights / weights.sum(dim=2, keepdim=True)
    return torch.where(flip[:, None, None], weights.flip(1), weights)


def _resample(tiles: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, S, S) float32 in [0, 1]."""
    image = tiles.permute(0, 3, 1, 2).to(torch.float32) / 255
    return rows.unsqueeze(1) @ image @ columns.unsqueeze(1).transpose(2, 3)


def _normalise(image: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=image.device)[:, None, None]
    std = torch.tensor(STD, device=image.device)[:, None, None]
    return (image - mean) / std
