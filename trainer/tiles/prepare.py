"""What a user sees of packing and verifying."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pandas as pd

from trainer.progress import say
from trainer.tiles.meta import META, REJECTED, Meta
from trainer.tiles.pack import PackOptions, PackSummary, none_taken, pack
from trainer.tiles.store import TileStore, verify
from trainer.wording import counted, joined

UNLABELLED = "(class unknown)"


def prepare(source: Path, store: Path, options: PackOptions) -> None:
    """Pack a source and say what came of it; TERM ends it with nothing left, and exit code 143."""
    with _term_as_exit():
        summary = pack(source, store, options)
    say(_headline(summary))
    say("\n".join(_account(summary.store, summary.meta)))


def check(path: Path) -> None:
    """Verify a store and say that it is whole; RunError if it is not."""
    store = verify(path)
    say(f"{path} is as it was packed: {counted(len(store), 'tile')}, fingerprint {store.fingerprint}")
    if not Meta.read(path).sha256:
        say(f"({META} holds no checksums, as those of earlier versions: its counts and {REJECTED} were not checked)")


@contextmanager
def _term_as_exit() -> Iterator[None]:
    """TERM unwinds the program as INT does, so that nothing unfinished and no process is left behind."""
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clearing up
    print("terminated", file=sys.stderr)
    sys.exit(128 + number)


def _headline(summary: PackSummary) -> str:
    tiles = f"{counted(summary.meta.tiles, 'tile')} of {counted(len(summary.meta.classes), 'class', 'classes')}"
    if summary.already:
        return f"{summary.store} holds these {tiles} already: nothing to do"
    rate = summary.meta.tiles / summary.seconds
    cores = counted(summary.processes, "process", "processes")
    return f"Packed {tiles} into {summary.store} in {summary.seconds:,.1f} s ({rate:,.0f} tiles/s, {cores})"


def _account(path: Path, meta: Meta) -> list[str]:
    index = TileStore.open(path).index
    space = sum(file.stat().st_size for file in path.iterdir())
    return [
        *_classes(meta),
        f"  tile size    {_size(meta)}",
        f"  groups       {_groups(index['group'])}",
        f"  splits       {_splits(index['split'])}",
        *([f"  ignored      {_ignored(meta)}"] if meta.ignored else []),
        *([f"  duplicates   {_duplicates(meta)}"] if meta.duplicates else []),
        *_rejected(path, meta),
        f"  space        {space / 1e6:,.1f} MB",
        f"  fingerprint  {meta.fingerprint[:16]}... (in {META})",
    ]


def _classes(meta: Meta) -> list[str]:
    unlabelled = meta.tiles - sum(meta.counts.values())
    more = {UNLABELLED: unlabelled} if unlabelled else {}
    width = max(map(len, (*meta.counts, *meta.without_tiles, *more)))
    return [
        *(f"  {label:{width}}  {count:8,}" for label, count in {**meta.counts, **more}.items()),
        *(f"  {label:{width}}  {0:8}  ({none_taken(files)})" for label, files in meta.without_tiles.items()),
    ]


def _size(meta: Meta) -> str:
    height, width = meta.tile_size
    if meta.mpp is None:
        return f"{width} x {height} px; microns per pixel unknown (--mpp)"
    return f"{width} x {height} px at {meta.mpp:g} um/px: a tile is {width * meta.mpp:,.0f} um wide"


def _groups(groups: "pd.Series[str]") -> str:
    if groups.isna().all():
        return "none known: slides or patients come from a manifest's `group` column"
    return f"{groups.nunique():,}{_without(groups)}"


def _splits(splits: "pd.Series[str]") -> str:
    if splits.isna().all():
        return "none said: they come from a manifest's `split` column"
    counts = splits.value_counts().sort_index()
    return f"{joined(f'{split} {count:,}' for split, count in counts.items())}{_without(splits)}"


def _without(column: "pd.Series[str]") -> str:
    missing = int(column.isna().sum())
    return f"; {counted(missing, 'tile')} without one" if missing else ""


def _ignored(meta: Meta) -> str:
    columns = counted(len(meta.ignored), "column")
    return f"{columns} of the manifest: {joined(meta.ignored)}; only path, label, group and split are read"


def _duplicates(meta: Meta) -> str:
    equal = counted(meta.duplicates, "tile")
    return f"{equal} with the pixels of another of the same label (tile_id ends in -2, -3, ...)"


def _rejected(path: Path, meta: Meta) -> list[str]:
    if not meta.rejected:
        return ["  rejected     none"]
    total = counted(sum(meta.rejected.values()), "file")
    lines = [f"  rejected     {total}, listed in {path / REJECTED}"]
    return lines + [f"      {count:8,}  {kind}" for kind, count in meta.rejected.items()]
