"""What is measured of every tile, in one pass over the pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.audit.blockiness import blockiness
from analysis.audit.sets import Sets

LEVELS = np.arange(256)
BINS = 16
"""Bins of each channel's histogram."""
SIDE = 32
"""Side of a thumbnail, px: as much as the perceptual hash sees."""
PIXELS = 64
"""Pixels kept of each tile, at the same random places, to estimate stains from."""
TEXTURE = 4.0
"""Grey levels: a tile whose thumbnail has a smaller standard deviation is called blank."""
BLOCK = 64


@dataclass(frozen=True)
class Measures:
    """Of N tiles, in the order of `Sets.tiles`. A level is a pixel's value from 0 to 255."""

    histogram: NDArray[np.float32]
    """(N, 3, 16): share of the tile's pixels in each sixteenth of each channel's range."""
    mean: NDArray[np.float32]
    """(N, 3): mean level of each channel."""
    deviation: NDArray[np.float32]
    """(N, 3): standard deviation of the levels of each channel."""
    thumbnail: NDArray[np.uint8]
    """(N, 32, 32): the tile averaged down, in grey."""
    blockiness: NDArray[np.float32]
    """(N, 2): see `blockiness.blockiness`."""
    pixels: NDArray[np.uint8]
    """(N, 64, 3): some of the tile's pixels."""

    @property
    def texture(self) -> NDArray[np.float32]:
        """(N,): standard deviation of the thumbnail, levels."""
        spread: NDArray[np.float32] = self.thumbnail.std(axis=(1, 2), dtype=np.float32)
        return spread

    @property
    def is_blank(self) -> NDArray[np.bool_]:
        """(N,): whether a tile has too little texture to be known again by it."""
        return self.texture < TEXTURE


def measure(sets: Sets, advance: Callable[[int], None] | None = None) -> Measures:
    """Measures every tile, by as many threads as this process may use cores; a few tiles are in memory at a time.

    Args:
        sets: the tiles.
        advance: called with the number of tiles that were done since the last call.
    """
    count = len(sets.tiles)
    made = Measures(
        histogram=np.empty((count, 3, BINS), np.float32),
        mean=np.empty((count, 3), np.float32),
        deviation=np.empty((count, 3), np.float32),
        thumbnail=np.empty((count, SIDE, SIDE), np.uint8),
        blockiness=np.empty((count, 2), np.float32),
        pixels=np.empty((count, PIXELS, 3), np.uint8),
    )
    store, row = sets.tiles["store"].to_numpy(), sets.tiles["row"].to_numpy()

    def fill(block: NDArray[np.int64]) -> int:
        _measure(sets.stores[store[block[0]]].tiles[row[block]], made, block)
        return len(block)

    blocks = [
        rows[start : start + BLOCK]
        for place in range(len(sets.stores))
        for rows in [_in_storage_order(store, row, place)]
        for start in range(0, len(rows), BLOCK)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for done in threads.map(fill, blocks):
            if advance:
                advance(done)
    return made


def _in_storage_order(store: NDArray[np.int64], row: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """The tiles of a store, as a disk would rather read them."""
    members = np.flatnonzero(store == place)
    return members[np.argsort(row[members])]


def _measure(tiles: NDArray[np.uint8], made: Measures, rows: NDArray[np.int64]) -> None:
    """Measures tiles (n, H, W, 3) into the given rows."""
    images = [Image.fromarray(tile) for tile in tiles]
    counts = np.array([image.histogram() for image in images], dtype=np.float64).reshape(len(tiles), 3, 256)
    shares = counts / (tiles.shape[1] * tiles.shape[2])
    mean = shares @ LEVELS
    made.mean[rows] = mean
    made.deviation[rows] = np.sqrt(np.maximum(shares @ LEVELS**2 - mean**2, 0))
    made.histogram[rows] = shares.reshape(len(tiles), 3, BINS, -1).sum(axis=3)
    made.thumbnail[rows] = [thumbnail(image) for image in images]
    made.blockiness[rows] = blockiness(np.stack([np.asarray(image.convert("L")) for image in images]))
    flat = tiles.reshape(len(tiles), -1, 3)
    made.pixels[rows] = flat[:, np.random.default_rng(0).integers(flat.shape[1], size=PIXELS)]


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """The image averaged down to 32 x 32 px and made grey: what `trainer.tiles.phash` hashes."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.0).convert("L"))
