"""Image files for the tests of packing."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **how: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, form, **how)
    return stream.getvalue()


def write(file: Path, data: bytes) -> Path:
    """Write a file, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def dataset(root: Path, classes: Iterable[str] = ("STRO", "TUM"), each: int = 4, size: int = 32) -> Path:
    """A folder of class folders with `each` PNG tiles of `size` pixels."""
    for c, label in enumerate(classes):
        for n in range(each):
            write(root / label / f"{label}-{n}.png", encoded(pixels(1000 * c + n, size, size)))
    return root


def zipped(folder: Path, file: Path, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of a folder's files, under the folder `top` in it."""
    with zipfile.ZipFile(file, "w", method) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):  # another order than the folder's
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(folder)}")
    return file
