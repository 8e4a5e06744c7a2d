"""Tiles of which everything is known: random textures in two stains, packed as a user would pack them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.tiles.pack import pack

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
Tiles = NDArray[np.uint8]


def textures(count: int, size: int, seed: int) -> NDArray[np.float64]:
    """(count, size, size) smooth random fields with values in [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)) * size
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(count, size, size)))
    field = np.fft.ifft2(noise / (1 + (frequency / 3) ** 2)).real
    field /= field.std(axis=(1, 2), keepdims=True)
    return np.clip(0.5 + 0.25 * field, 0, 1)


def stained(haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64], vectors: NDArray[np.float64]) -> Tiles:
    """Tiles (N, H, W, 3) that hold these amounts (N, H, W) of two stains, the rows of `vectors` (2, 3)."""
    density = haematoxylin[..., None] * vectors[0] + eosin[..., None] * vectors[1]
    return np.rint(255 * 10**-density).astype(np.uint8)


def tissue(count: int, size: int = 64, seed: int = 0) -> Tiles:
    """Random tiles in haematoxylin and eosin."""
    amounts = textures(2 * count, size, seed)
    vectors = np.stack([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    return stained(0.8 * amounts[:count], 0.5 * amounts[count:], vectors)


def glass(count: int, size: int = 64, seed: int = 0) -> Tiles:
    """Random tiles of nothing but light and noise."""
    return np.random.default_rng(seed).normal(235, 2, (count, size, size, 3)).round().astype(np.uint8)


def compressed(tile: Tiles, quality: int) -> Tiles:
    """The tile after JPEG, in every pixel's own colour."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))


def make_store(
    folder: Path,
    tiles: Sequence[Tiles] | Tiles,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> Path:
    """Packs tiles from PNG files; tile k is `LABEL/k.png`. Returns the store."""
    source = folder.parent / f"{folder.name}-source"
    columns = {"path": [], "label": list(labels)}
    columns |= {name: list(each) for name, each in (("group", groups), ("split", splits)) if each is not None}
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        path = f"{label}/{number}.png"
        (source / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(tile)).save(source / path, compress_level=1)
        columns["path"].append(path)
    with (source / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    pack(source / "manifest.csv", folder, processes=1)
    return folder


def number(path: str) -> int:
    """Which tile a path names."""
    return int(Path(path).stem)


def clean_store(folder: Path, count: int = 240, size: int = 64, seed: int = 0, groups: int = 12) -> Path:
    """Tiles whose class is drawn by lot: nothing in them tells it. Every group holds every class."""
    labels = np.random.default_rng([seed, 1]).permutation([("A", "B", "C")[k % 3] for k in range(count)])
    names = [f"{folder.name}-{k % groups}" for k in range(count)]
    return make_store(folder, tissue(count, size, seed), list(labels), names)
