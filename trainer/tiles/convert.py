"""One process's share of packing: read a file, decode it, write its pixels at its row of the tiles file."""

import errno
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from trainer.tiles.decode import Rejection, decode
from trainer.tiles.listing import Place
from trainer.tiles.phash import phash

HEADER_BYTES = 128  # of a .npy file of this shape, for any number of tiles below 10**20


@dataclass(frozen=True)
class Target:
    """Where tiles are written and what they must be like: `tile_size` is (height, width), uint8 RGB."""

    file: Path
    tile_size: tuple[int, int]
    resample: bool


class Converted(NamedTuple):
    """A decoded file. `tile_size` is that of its tile; the pixels are written only where the target has it too."""

    tile_id: str
    width: int
    height: int
    mode: str
    format: str
    compression: str | None
    source_bytes: int
    source_sha256: str
    phash: str
    tile_size: tuple[int, int]


class Job(NamedTuple):
    """One file to convert, and the row that its tile gets."""

    path: str
    row: int


class Refused(NamedTuple):
    """A file that cannot become a tile; `source_sha256` is null where it could not even be read."""

    reason: str
    source_sha256: str | None


Outcome = Converted | Refused


class Converter:
    """Converts files of one place into one target."""

    def __init__(self, place: Place, target: Target) -> None:
        self.read = place.reader()
        self.target = target
        self.descriptor = os.open(target.file, os.O_WRONLY)

    def __enter__(self) -> "Converter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def convert(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of each job; OSError only where the target cannot be written, MemoryError naming the file."""
        return [self._convert_or_name(job) for job in jobs]

    def _convert_or_name(self, job: Job) -> Outcome:
        try:
            return self._convert(job)
        except MemoryError:
            raise MemoryError(f"while {job.path} was decoded") from None

    def _convert(self, job: Job) -> Outcome:
        digest = None
        try:
            data = self.read(job.path)
            digest, source_bytes = hashlib.sha256(data).hexdigest(), len(data)
            decoded = decode(data)
            del data  # before its pixels are copied: both are large in large tiles
            image = _resampled(decoded.image, self.target.tile_size) if self.target.resample else decoded.image
        except Rejection as rejection:
            return Refused(str(rejection), digest)
        pixels = image.tobytes()
        size = (image.height, image.width)
        if size == self.target.tile_size:
            write_row(self.descriptor, job.row, pixels)
        return Converted(
            tile_id(pixels),
            *decoded[1:],
            source_bytes=source_bytes,
            source_sha256=digest,
            phash=phash(image),
            tile_size=size,
        )


def tile_id(pixels: bytes | memoryview) -> str:
    """Name of a tile by its content: 16 hex digits of the sha256 of its H x W x 3 uint8 pixels."""
    return hashlib.sha256(pixels).hexdigest()[:16]


def write_row(descriptor: int, row: int, pixels: bytes) -> None:
    """Write a tile at its row of the tiles file."""
    # Not through a memory map: there a full disk is a SIGBUS, and every page is read before it is written.
    if os.pwrite(descriptor, pixels, HEADER_BYTES + row * len(pixels)) < len(pixels):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _resampled(image: Image.Image, tile_size: tuple[int, int]) -> Image.Image:
    """The image at another size, low-passed before it is reduced (Pillow's bicubic scales its support)."""
    height, width = tile_size
    if image.width * height != image.height * width:
        raise Rejection(f"not square: {image.width} x {image.height} px would be distorted by --size")
    return image.resize((width, height), Image.Resampling.BICUBIC)


_converter: Converter  # of this process, once `start` has run in it


def start(place: Place, target: Target) -> None:
    """Make this process ready for `convert`."""
    global _converter
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _converter = Converter(place, target)


def convert(jobs: Sequence[Job]) -> list[Outcome]:
    """Convert jobs in a process that `start` made ready."""
    return _converter.convert(jobs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
