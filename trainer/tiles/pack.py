"""Packing: a folder, zip or manifest -> a tile store."""

import hashlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
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
from trainer.tiles.admit import Admitted, admit, kinds, some, without_tiles, write_rejected
from trainer.tiles.atomic import new_directory
from trainer.tiles.contents import content_digest, read_content_digest
from trainer.tiles.fill import CHUNK, close_gaps, fill
from trainer.tiles.meta import FORMAT_VERSION, REJECTED, TILES, Meta
from trainer.tiles.scan import Labels, Scan, scan
from trainer.tiles.store import SCHEMA, TileStore, fingerprint, write_index
from trainer.wording import counted, joined

_SIZES = range(8, 4097)


@dataclass(frozen=True)
class PackOptions:
    """How to pack: `size` resamples square tiles to size x size pixels; `mpp` is microns per pixel as stored.

    `labels` says whether tiles need a class.
    """

    size: int | None = None
    mpp: float | None = None
    md5: str | None = None
    strict: bool = False
    labels: Labels = "required"

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


def pack(
    source: Path,
    store: Path,
    options: PackOptions | None = None,
    *,
    processes: int | None = None,
    check: Callable[[], object] = lambda: None,
) -> PackSummary:
    """Pack a source into a new store, by as many processes as this one may use cores.

    Now and then `check` is called, which may end it by an exception; then nothing is left.

    A store that was made from the same input with the same options is left as it is. UsageError: the input, the
    options or the place are wrong, or `strict` and a file was rejected; RunError: it failed on the way.
    """
    began = time.perf_counter()
    options = options or PackOptions()
    options.check(source)
    _check_apart(source, store)
    if options.md5:
        _check_md5(source, options.md5)
    found = scan(source, options.labels)
    made = _made_from(source, found, options)
    if not store.exists() or _is_empty_folder(store):
        processes = processes or _processes(len(found.files))
        meta = _pack_new(found, store, options, processes, made, check)
        return PackSummary(store, meta, False, time.perf_counter() - began, processes)
    meta = _check_same(store, found, made)
    _check_strict(options, meta.rejected, meta.without_tiles, f"\nthe files are listed in {store / REJECTED}")
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
    blocks = math.ceil(source.stat().st_size / 2**20)
    with source.open("rb") as file, track("Checking md5", blocks, "MiB") as advance:
        while block := file.read(2**20):
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
        "names_digest": found.names_digest,
        "files": len(found.files) + len(found.rejected),
        "size": options.size,
        "mpp": options.mpp,
        **({} if options.labels == "required" else {"labels": options.labels}),
    }


def _check_same(store: Path, found: Scan, wanted: dict[str, Any]) -> Meta:
    meta = Meta.read(store)
    made = meta.made
    remedy = f"choose another name, or delete {store} first"
    if not _same_input(found, made):
        raise UsageError(
            f"{store} was packed from another input: {made.get('source')} with {counted(made.get('files', 0), 'file')},"
            f" now {wanted['source']} with {wanted['files']:,}"
            f" (names, sizes and {'contents' if 'content_digest' in made else 'times'} are compared): {remedy}"
        )
    differing = [name for name in ("size", "mpp") if made.get(name) != wanted[name]]
    if differing:
        before, now = (joined(_flag(name, each.get(name)) for name in differing) for each in (made, wanted))
        raise UsageError(f"{store} was packed {before}, now {now}: {remedy}")
    if made.get("labels") != wanted.get("labels"):
        before, now = ("without" if each.get("labels") else "with" for each in (made, wanted))
        raise UsageError(f"{store} was packed {before} labels, now {now}: {remedy}")
    TileStore.open(store)
    return meta


def _same_input(found: Scan, made: dict[str, Any]) -> bool:
    """Whether a source is what a store was made from; files are read only where nothing but times differs."""
    if made.get("source_digest") == found.digest:
        return True
    if made.get("names_digest") != found.names_digest:
        return False
    return bool(made.get("content_digest") == read_content_digest(found))


def _flag(name: str, value: float | None) -> str:
    return f"without --{name}" if value is None else f"with --{name} {value:g}"


def _check_strict(options: PackOptions, rejected: dict[str, int], without_tiles: dict[str, int], more: str) -> None:
    problems = []
    if rejected:
        by_kind = joined(f"{count:,} {kind}" for kind, count in rejected.items())
        problems.append(f"{counted(sum(rejected.values()), 'file')} rejected ({by_kind})")
    problems += [f"class {label}: {none_taken(files)}" for label, files in without_tiles.items()]
    if options.strict and problems:
        raise UsageError(f"--strict: {'; '.join(problems)}{more}")


def none_taken(files: int) -> str:
    """What became of the files of a class that gave no tile."""
    return f"{counted(files, 'file')}, none taken" if files else "no images"


def _pack_new(
    found: Scan,
    store: Path,
    options: PackOptions,
    processes: int,
    made: dict[str, Any],
    check: Callable[[], object],
) -> Meta:
    with new_directory(store) as directory, _writing(store):
        outcomes, tile_size = fill(directory / TILES, found, options.size, processes, check)
        admitted, rejected = admit(found, outcomes, tile_size, labelled=options.labels == "required")
        absent = without_tiles(found, admitted)
        more = f"{some(rejected)}\nwithout --strict they are left out, and the store says so"
        _check_strict(options, kinds(rejected), absent, more)
        if not admitted:
            raise UsageError(
                f"{made['source']} has no usable tile in {counted(len(rejected), 'file')}:{some(rejected)}"
            )
        close_gaps(directory / TILES, [tile.row for tile in admitted], tile_size)
        index = _index(admitted)
        write_index(index, directory)
        write_rejected(rejected, directory / REJECTED)
        contents = content_digest(found, (outcomes[file.path].source_sha256 for file in found.files))
        made = {**made, "content_digest": contents, **_circumstances()}
        meta = _meta(index, tile_size, options.mpp, made, kinds(rejected), absent, found.ignored).sealed(directory)
        meta.write(directory)
        return meta


def _meta(
    index: pd.DataFrame,
    tile_size: tuple[int, int],
    mpp: float | None,
    made: dict[str, Any],
    rejected: dict[str, int],
    absent: dict[str, int],
    ignored: Sequence[str],
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
        made=made,
        without_tiles=absent,
        ignored=list(ignored),
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
    except MemoryError as error:
        what = f"out of memory {error}".strip()
        raise RunError(f"{store} could not be written: {what}; nothing of it is left") from None
    except BrokenProcessPool:
        raise RunError(
            f"{store} could not be written: a process that decodes was killed (out of memory?); nothing of it is left"
        ) from None


def _index(admitted: Sequence[Admitted]) -> pd.DataFrame:
    rows = [{**tile.file._asdict(), **tile.converted._asdict(), "tile_id": tile.tile_id} for tile in admitted]
    return pd.DataFrame(rows, columns=SCHEMA.names)
