"""Packing: a folder, zip or manifest -> a tile store."""

import hashlib
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL

from trainer.errors import RunError, UsageError
from trainer.progress import track
from trainer.tiles.admit import Admitted, admit, kinds, some, write_rejected
from trainer.tiles.atomic import new_directory
from trainer.tiles.fill import CHUNK, close_gaps, fill
from trainer.tiles.scan import Scan, scan
from trainer.tiles.store import (
    FORMAT_VERSION,
    REJECTED,
    SCHEMA,
    TILES,
    Meta,
    TileStore,
    fingerprint,
    write_index,
)

_SIZES = range(8, 4097)


@dataclass(frozen=True)
class PackOptions:
    """How to pack: `size` resamples square tiles to size x size pixels; `mpp` is microns per pixel as stored."""

    size: int | None = None
    mpp: float | None = None
    md5: str | None = None
    strict: bool = False

    def check(self, source: Path) -> None:
        """UsageError with every option that cannot be."""
        problems = []
        if self.size is not None and self.size not in _SIZES:
            problems.append(f"--size {self.size}: give {_SIZES.start} to {_SIZES.stop - 1} pixels")
        if self.mpp is not None and not (math.isfinite(self.mpp) and self.mpp > 0):
            problems.append(f"--mpp {self.mpp}: give microns per pixel above 0, such as 0.5")
        if self.md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", self.md5):
            problems.append(f"--md5 {self.md5}: give 32 hexadecimal digits")
        if self.md5 is not None and source.suffix.lower() != ".zip":
            problems.append(f"--md5 checks a zip, and {source} is none")
        if problems:
            raise UsageError("\n".join(problems))


@dataclass(frozen=True)
class PackSummary:
    """What came of packing: the store's own account, and the time it took; `already` if it was there before."""

    store: Path
    meta: Meta
    already: bool
    seconds: float
    processes: int


def pack(source: Path, store: Path, options: PackOptions | None = None, *, processes: int | None = None) -> PackSummary:
    """Pack a source into a new store, by as many processes as this one may use cores.

    A store that was made from the same input with the same options is left as it is. UsageError: the input, the
    options or the place are wrong, or `strict` and a file was rejected; RunError: it failed on the way.
    """
    began = time.perf_counter()
    options = options or PackOptions()
    options.check(source)
    _check_apart(source, store)
    if options.md5:
        _check_md5(source, options.md5)
    found = scan(source)
    made = _made_from(source, found, options)
    if not store.exists() or _is_empty_folder(store):
        processes = processes or _processes(len(found.files))
        meta = _pack_new(found, store, options, processes, made)
        return PackSummary(store, meta, False, time.perf_counter() - began, processes)
    meta = _check_same(store, made)
    _check_strict(options, meta.rejected, f"they are listed in {store / REJECTED}")
    return PackSummary(store, meta, True, time.perf_counter() - began, 0)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_apart(source: Path, store: Path) -> None:
    if source.is_dir() and store.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{store} lies inside the source {source}: name a place outside it")


def _check_md5(source: Path, expected: str) -> None:
    if not source.is_file():
        raise UsageError(f"{source} does not exist")
    digest = hashlib.md5(usedforsecurity=False)
    with source.open("rb") as file, track("Checking md5", source.stat().st_size >> 20, "MiB") as advance:
        while block := file.read(1 << 20):
            digest.update(block)
            advance(1)
    if digest.hexdigest() != expected.lower():
        raise UsageError(f"{source} has md5 {digest.hexdigest()}, not {expected.lower()}: get it again")


def _processes(files: int) -> int:
    return max(1, min(len(os.sched_getaffinity(0)), files // (2 * CHUNK)))


def _made_from(source: Path, found: Scan, options: PackOptions) -> dict[str, Any]:
    """What must be the same for a store to be the same."""
    return {
        "source": source.resolve().name,
        "source_digest": found.digest,
        "files": len(found.files) + len(found.rejected),
        "size": options.size,
        "mpp": options.mpp,
    }


def _check_same(store: Path, wanted: dict[str, Any]) -> Meta:
    meta = Meta.read(store)
    made = meta.made
    remedy = f"choose another name, or delete {store} first"
    if made.get("source_digest") != wanted["source_digest"]:
        raise UsageError(
            f"{store} was packed from another input: {made.get('source')} with {made.get('files'):,} files, now"
            f" {wanted['source']} with {wanted['files']:,} (names, sizes and times are compared): {remedy}"
        )
    differing = [
        f"--{name} {made.get(name)}, now {wanted[name]}" for name in ("size", "mpp") if made.get(name) != wanted[name]
    ]
    if differing:
        raise UsageError(f"{store} was packed with {' and '.join(differing)}: {remedy}")
    TileStore.open(store)
    return meta


def _check_strict(options: PackOptions, rejected: dict[str, int], where: str) -> None:
    if options.strict and rejected:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in rejected.items())
        raise UsageError(f"--strict, and {sum(rejected.values()):,} files were rejected ({counts}): {where}")


def _pack_new(found: Scan, store: Path, options: PackOptions, processes: int, made: dict[str, Any]) -> Meta:
    with new_directory(store) as directory, _writing(store):
        outcomes, tile_size = fill(directory / TILES, found, options.size, processes)
        admitted, rejected = admit(found, outcomes, tile_size)
        _check_strict(options, kinds(rejected), f"{some(rejected)}\nwithout --strict the store lists them")
        if not admitted:
            raise UsageError(f"{made['source']} has no usable tile in {len(rejected):,} files:{some(rejected)}")
        close_gaps(directory / TILES, [tile.row for tile in admitted], tile_size)
        index = _index(admitted)
        meta = _meta(index, tile_size, options.mpp, kinds(rejected), made)
        write_index(index, directory)
        write_rejected(rejected, directory / REJECTED)
        meta.write(directory)
        return meta


def _meta(
    index: pd.DataFrame, tile_size: tuple[int, int], mpp: float | None, rejected: dict[str, int], made: dict[str, Any]
) -> Meta:
    counts = index["label"].value_counts().sort_index()
    classes = tuple(map(str, counts.index))
    return Meta(
        format_version=FORMAT_VERSION,
        classes=list(classes),
        tile_size=list(tile_size),
        mpp=mpp,
        tiles=len(index),
        counts={label: int(count) for label, count in zip(classes, counts, strict=True)},
        duplicates=int(index["tile_id"].str.contains("-").sum()),
        rejected=rejected,
        fingerprint=fingerprint(classes, tile_size, mpp, index),
        made={**made, **_circumstances()},
    )


def _circumstances() -> dict[str, str]:
    versions = f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}"
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}


@contextmanager
def _writing(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{store} could not be written, and nothing of it is left: {error}") from None
    except BrokenProcessPool:
        raise RunError(
            f"{store} could not be written: a process that decodes was killed (out of memory?); nothing of it is left"
        ) from None


def _index(admitted: Sequence[Admitted]) -> pd.DataFrame:
    rows = [{**tile.file._asdict(), **tile.converted._asdict(), "tile_id": tile.tile_id} for tile in admitted]
    return pd.DataFrame(rows, columns=SCHEMA.names)
