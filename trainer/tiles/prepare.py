"""What a user sees of packing and verifying."""

from pathlib import Path

from trainer.progress import say
from trainer.tiles.pack import PackOptions, PackSummary, pack
from trainer.tiles.store import META, REJECTED, Meta, verify


def prepare(source: Path, store: Path, options: PackOptions) -> None:
    """Pack a source and say what came of it."""
    summary = pack(source, store, options)
    say(_headline(summary))
    say("\n".join(_account(summary.store, summary.meta)))


def check(path: Path) -> None:
    """Verify a store and say that it is whole; RunError if it is not."""
    store = verify(path)
    say(f"{path} is as it was packed: {len(store):,} tiles, fingerprint {store.fingerprint}")


def _headline(summary: PackSummary) -> str:
    tiles, classes = f"{summary.meta.tiles:,} tiles", f"{len(summary.meta.classes)} classes"
    if summary.already:
        return f"{summary.store} holds these {tiles} of {classes} already: nothing to do"
    rate = summary.meta.tiles / summary.seconds
    cores = f"{summary.processes} process{'es' if summary.processes > 1 else ''}"
    return (
        f"Packed {tiles} of {classes} into {summary.store} in {summary.seconds:,.1f} s ({rate:,.0f} tiles/s, {cores})"
    )


def _account(path: Path, meta: Meta) -> list[str]:
    width = max(map(len, meta.classes))
    space = sum(file.stat().st_size for file in path.iterdir())
    return [
        *(f"  {label:{width}}  {count:8,}" for label, count in meta.counts.items()),
        f"  tile size    {_size(meta)}",
        *([f"  duplicates   {_duplicates(meta)}"] if meta.duplicates else []),
        *_rejected(path, meta),
        f"  space        {space / 1e6:,.1f} MB",
        f"  fingerprint  {meta.fingerprint[:16]}... (in {META})",
    ]


def _size(meta: Meta) -> str:
    height, width = meta.tile_size
    if meta.mpp is None:
        return f"{width} x {height} px; microns per pixel unknown (--mpp)"
    return f"{width} x {height} px at {meta.mpp:g} um/px: a tile is {width * meta.mpp:,.0f} um wide"


def _duplicates(meta: Meta) -> str:
    return f"{meta.duplicates:,} tiles repeat another's pixels under its label (tile_id ends in -2, -3, ...)"


def _rejected(path: Path, meta: Meta) -> list[str]:
    if not meta.rejected:
        return ["  rejected     none"]
    total = sum(meta.rejected.values())
    lines = [f"  rejected     {total:,} file{'s' if total > 1 else ''}, listed in {path / REJECTED}"]
    return lines + [f"      {count:8,}  {kind}" for kind, count in meta.rejected.items()]
