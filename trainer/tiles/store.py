"""The packed tile store: a directory that is written once, opened by memory map, and checked by its fingerprint."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import RunError, UsageError
from trainer.progress import track
from trainer.tiles.convert import HEADER_BYTES, tile_id
from trainer.tiles.meta import FORMAT_VERSION, INDEX, META, TILES, Meta, checksums, damaged, read_account
from trainer.wording import counted, joined

_TEXT, _COUNT = pa.string(), pa.int64()
SCHEMA = pa.schema(
    {
        "tile_id": _TEXT,
        "path": _TEXT,
        "label": _TEXT,
        "group": _TEXT,
        "split": _TEXT,
        "width": _COUNT,
        "height": _COUNT,
        "mode": _TEXT,
        "format": _TEXT,
        "compression": _TEXT,
        "source_bytes": _COUNT,
        "source_sha256": _TEXT,
        "phash": _TEXT,
    }
)
_MAY_BE_NULL = ("label", "group", "split", "compression")
_BLOCK = 64  # tiles that a thread verifies at a time
_IDENTITY = ["tile_id", "path", "label", "group", "split"]


@dataclass(frozen=True, eq=False)
class TileStore:
    """Tiles and their index.

    `index` has one row a tile in storage order, with the columns of SCHEMA; `label` is the class name, null where it is
    unknown; `group`, `split` and `compression` may be null; width, height and mode are the source file's. `tiles` is
    (N, height, width, 3) uint8, memory-mapped. `fingerprint` is the sha256 over classes, tile size, microns per
    pixel, and each row's tile_id, path, label, group and split: the same content has the same fingerprint,
    wherever the store lies and whatever it was packed from.
    """

    path: Path
    classes: tuple[str, ...]
    tile_size: tuple[int, int]
    mpp: float | None
    fingerprint: str
    index: pd.DataFrame
    tiles: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def open(cls, path: Path) -> "TileStore":
        """Open a store after cheap checks (files, format, shapes, number of rows); UsageError if one fails."""
        meta = Meta.read(path)
        height, width = meta.tile_size
        tiles = _map_tiles(path, (meta.tiles, height, width, 3))
        index = _read_index(path)
        if len(index) != meta.tiles:
            raise damaged(path, f"{INDEX} has {counted(len(index), 'row')} for {counted(meta.tiles, 'tile')}")
        unknown = sorted(set(index["label"].dropna()).difference(meta.classes))
        if unknown:
            raise damaged(path, f"{INDEX} has labels that {META} does not know: {joined(map(str, unknown))}")
        return cls(path, tuple(meta.classes), (height, width), meta.mpp, meta.fingerprint, index, tiles)


def _map_tiles(path: Path, shape: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    try:
        tiles: npt.NDArray[np.uint8] = np.lib.format.open_memmap(path / TILES, mode="r")
        size = (path / TILES).stat().st_size
    except Exception as error:  # numpy reads the header as Python: a damaged one fails in every way there is
        raise damaged(path, f"{TILES} cannot be mapped ({error})") from None
    if tiles.shape != shape or tiles.dtype != np.uint8:
        raise damaged(path, f"{TILES} has shape {tiles.shape} of {tiles.dtype}, not {shape} of uint8")
    if size != HEADER_BYTES + tiles.nbytes:
        raise damaged(path, f"{TILES} has {size:,} bytes, not {HEADER_BYTES + tiles.nbytes:,}")
    return tiles


def _read_index(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(path / INDEX, page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, ValueError) as error:
        raise damaged(path, f"{INDEX} cannot be read ({error})") from None
    if not table.schema.equals(SCHEMA):
        raise damaged(path, f"{INDEX} was written by another program: {_schema_problem(table.schema)}")
    if missing := [name for name in SCHEMA.names if name not in _MAY_BE_NULL and table[name].null_count]:
        raise damaged(path, f"{INDEX} has rows without {joined(missing)}")
    index: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return index


def _schema_problem(found: pa.Schema) -> str:
    if found.names != SCHEMA.names:
        return f"its columns are {', '.join(found.names)}, where {', '.join(SCHEMA.names)} are expected"
    other = [f"{field.name} is {field.type}, not {SCHEMA.field(field.name).type}" for field in found]
    return joined(text for text, field in zip(other, found, strict=True) if not field.equals(SCHEMA.field(field.name)))


def write_index(index: pd.DataFrame, directory: Path) -> None:
    """Write an index with the columns of SCHEMA."""
    table = pa.Table.from_pandas(index, SCHEMA, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, directory / INDEX, compression="zstd", write_page_checksum=True)


def fingerprint(classes: tuple[str, ...], tile_size: tuple[int, int], mpp: float | None, index: pd.DataFrame) -> str:
    """The fingerprint of a store with this content (see TileStore)."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, classes, tile_size, mpp]).encode())
    rows = index[_IDENTITY].astype(object)
    for row in rows.where(rows.notna(), None).itertuples(index=False, name=None):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def verify(path: Path) -> TileStore:
    """Check a whole store: every pixel and its index against its fingerprint, the small files against their sha256.

    Raises:
        RunError: with all that is wrong. A store that was packed before store.json held sums is checked without them.
    """
    meta = Meta.read(path)
    try:
        store = TileStore.open(path)
    except UsageError as error:
        raise RunError(str(error)) from None
    problems = _changed_files(path, meta)
    if fingerprint(store.classes, store.tile_size, store.mpp, store.index) != meta.fingerprint:
        problems.append(f"{INDEX} and {META} do not give the fingerprint {meta.fingerprint[:12]}")
    changed = [store.index["path"].iloc[row] for row in _changed_tiles(store)]
    if changed:
        problems.append(f"the pixels of {counted(len(changed), 'tile')} in {TILES} have changed: {joined(changed)}")
    if problems:
        raise RunError(str(damaged(path, "; ".join(problems))))
    return store


def _changed_files(path: Path, meta: Meta) -> list[str]:
    found = checksums(read_account(path), path)
    return [
        f"{name} {'has changed' if found.get(name) else 'is missing'}"
        for name, sha256 in meta.sha256.items()
        if found.get(name) != sha256
    ]


def _changed_tiles(store: TileStore) -> Iterator[int]:
    """Rows whose pixels do not have the sha256 that their tile_id (less a suffix) states."""
    expected = [name.partition("-")[0] for name in store.index["tile_id"]]

    def changed(block: range) -> list[int]:
        return [row for row in block if tile_id(store.tiles[row].data) != expected[row]]

    blocks = [range(start, min(start + _BLOCK, len(store))) for start in range(0, len(store), _BLOCK)]
    with (
        track(f"Verifying {store.path}", len(store)) as advance,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
    ):
        for block, rows in zip(blocks, threads.map(changed, blocks), strict=True):
            yield from rows
            advance(len(block))
