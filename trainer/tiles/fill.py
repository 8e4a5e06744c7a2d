"""Filling tiles.npy: every file of a source is decoded into its row, by several processes."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trainer.errors import UsageError
from trainer.progress import track
from trainer.tiles import convert
from trainer.tiles.admit import majority
from trainer.tiles.convert import HEADER_BYTES, Converted, Converter, Job, Outcome, Target
from trainer.tiles.decode import Rejection, decode
from trainer.tiles.listing import Place
from trainer.tiles.scan import Scan

CHUNK = 32  # files that a process converts between two reports
_SAMPLE = 101  # files that tell the likely tile size


def fill(
    file: Path, found: Scan, size: int | None, processes: int, check: Callable[[], object] = lambda: None
) -> tuple[dict[str, Outcome], tuple[int, int]]:
    """Decode all that was found, and write the tiles that have the majority's size, or are resampled to `size`.

    Returns each path's outcome, and the tile size (height, width). Each tile is at its row of all that was found;
    `close_gaps` makes a whole .npy file of it. Files are read once, unless a sample misleads about the size. `check` is
    called after each chunk of files.
    """
    jobs = [Job(file.path, found.rows[file.path]) for file in found.files]
    tile_size = (size, size) if size else likely_size(found)
    while True:
        _check_space(file, len(jobs), tile_size)
        file.write_bytes(b"")
        outcomes = _run(found.place, Target(file, tile_size, size is not None), jobs, processes, check)
        seen = majority(outcome.tile_size for outcome in outcomes.values() if isinstance(outcome, Converted))
        if seen in (tile_size, None):
            return outcomes, tile_size
        tile_size = seen


def likely_size(found: Scan) -> tuple[int, int]:
    """The majority's (height, width) among some of the files; (0, 0) where none of these is an image."""
    read = found.place.reader()
    sizes = []
    for path in sorted(found.rows, key=found.rows.__getitem__)[:_SAMPLE]:
        try:
            image = decode(read(path)).image
            sizes.append((image.height, image.width))
        except Rejection:
            continue
    return majority(sizes) or (0, 0)


def _check_space(file: Path, tiles: int, tile_size: tuple[int, int]) -> None:
    needed = tiles * (tile_size[0] * tile_size[1] * 3 + 1024)  # 1 KiB: a tile's share of the index, generously
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise UsageError(
            f"{tiles:,} tiles of {tile_size[1]} x {tile_size[0]} px need {needed / 1e9:,.1f} GB, and only"
            f" {free / 1e9:,.1f} GB are free in {file.parent.parent.parent}: make room, choose another place, or --size"
        )


def _run(
    place: Place, target: Target, jobs: Sequence[Job], processes: int, check: Callable[[], object]
) -> dict[str, Outcome]:
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    outcomes: dict[str, Outcome] = {}
    with track("Packing", len(jobs)) as advance, _mapped(place, target, chunks, processes) as results:
        for chunk, result in zip(chunks, results, strict=True):
            outcomes.update(zip((job.path for job in chunk), result, strict=True))
            advance(len(chunk))
            check()
    return outcomes


@contextmanager
def _mapped(
    place: Place, target: Target, chunks: Sequence[Sequence[Job]], processes: int
) -> Iterator[Iterator[list[Outcome]]]:
    """The chunks' outcomes, from this process or from several."""
    if processes == 1:
        with Converter(place, target) as converter:
            yield map(converter.convert, chunks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    pool = ProcessPoolExecutor(processes, spawn, convert.start, (place, target))
    try:
        with _one_thread_each(), _interrupts_blocked():
            results = pool.map(convert.convert, chunks)
        yield results
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started here get numpy without a thread for every core: together those exceed `ulimit -u`."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started here are never interrupted, not even while they import; this one is, at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def close_gaps(file: Path, rows: Sequence[int], tile_size: tuple[int, int]) -> None:
    """Move the tiles at `rows`, which ascend, to rows 0, 1, 2, ...; cut the rest off; write the header."""
    size = tile_size[0] * tile_size[1] * 3
    with file.open("r+b") as tiles:
        for new, old in enumerate(rows):
            if new != old:
                pixels = os.pread(tiles.fileno(), size, HEADER_BYTES + old * size)
                convert.write_row(tiles.fileno(), new, pixels)
        tiles.truncate(HEADER_BYTES + len(rows) * size)
        shape = (len(rows), *tile_size, 3)
        np.lib.format.write_array_header_1_0(tiles, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert tiles.tell() == HEADER_BYTES
