"""Which decoded files become tiles: those of the majority's size whose pixels do not bear two labels."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.tiles.convert import Converted, Outcome, Refused
from trainer.tiles.scan import Rejected, Scan, TileFile

_SHOWN = 10


@dataclass(frozen=True)
class Admitted:
    """A file whose tile goes into the store; `tile_id` has a suffix where its pixels were there before.

    `row` is where the tile was written; some rows between may be empty.
    """

    file: TileFile
    converted: Converted
    tile_id: str
    row: int


def majority(sizes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The most frequent (height, width); of equally frequent ones the largest."""
    counts = Counter(sizes)
    return max(counts, key=lambda size: (counts[size], size[0] * size[1], size), default=None)


def admit(
    found: Scan, outcomes: Mapping[str, Outcome], tile_size: tuple[int, int], *, labelled: bool = True
) -> tuple[list[Admitted], list[Rejected]]:
    """What becomes a tile, in storage order, and what is rejected, in path order, from the outcome of each path.

    Equal pixels under one label are kept and get the suffixes -2, -3, ...; under two labels all are rejected, if tiles
    are there for their labels.
    """
    admitted: list[Admitted] = []
    rejected = list(found.rejected)
    alike: dict[str, list[Admitted]] = defaultdict(list)
    for file in sorted(found.files, key=lambda file: file.path):
        outcome = outcomes[file.path]
        if isinstance(outcome, Refused):
            rejected.append(Rejected(file.path, outcome.reason))
        elif outcome.tile_size != tile_size:
            rejected.append(Rejected(file.path, _wrong_size(outcome.tile_size, tile_size)))
        else:
            alike[outcome.tile_id].append(Admitted(file, outcome, outcome.tile_id, found.rows[file.path]))
    for tiles in alike.values():
        labels = {tile.file.label for tile in tiles}
        if labelled and len(labels) > 1:
            rejected += [_contradicted(tile, tiles) for tile in tiles]
        else:
            admitted += [replace(tile, tile_id=_suffixed(tile.tile_id, n)) for n, tile in enumerate(tiles, 1)]
    return sorted(admitted, key=lambda tile: tile.row), sorted(rejected)


def _wrong_size(size: tuple[int, int], expected: tuple[int, int]) -> str:
    return f"wrong size: {size[1]} x {size[0]} px, where most tiles have {expected[1]} x {expected[0]}"


def _contradicted(tile: Admitted, tiles: Sequence[Admitted]) -> Rejected:
    other = next(other.file for other in tiles if other.file.label != tile.file.label)
    return Rejected(tile.file.path, f"equal pixels under two labels: {other.path} is {other.label}")


def _suffixed(name: str, n: int) -> str:
    return name if n == 1 else f"{name}-{n}"


def without_tiles(found: Scan, admitted: Iterable[Admitted]) -> dict[str, int]:
    """The classes of which nothing became a tile, with the number of files that each offered."""
    present = {tile.file.label for tile in admitted if tile.file.label is not None}
    return {label: files for label, files in sorted(found.offered.items()) if label not in present}


def kinds(rejected: Sequence[Rejected]) -> dict[str, int]:
    """Number of rejected files by kind of reason, the most frequent first."""
    return dict(Counter(reason.partition(":")[0] for _, reason in rejected).most_common())


def some(rejected: Sequence[Rejected]) -> str:
    """The first few rejected files, a line each."""
    shown = "".join(f"\n  {path}: {reason}" for path, reason in rejected[:_SHOWN])
    return shown + ("\n  ..." if len(rejected) > _SHOWN else "")


def write_rejected(rejected: Sequence[Rejected], file: Path) -> None:
    """Write path and reason of each rejected file as csv."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(Rejected._fields)
        writer.writerows(rejected)
