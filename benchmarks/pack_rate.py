"""Packing on this machine: tiles a second, by process and by CPU second, against plain Pillow on the same files.

The files are 2,000 TIFFs of 224 px (packbits), drawn for the purpose, in a folder, a stored zip and a deflated zip;
and, where named, a folder of class folders of JPEGs. The peer opens and decodes each file and makes an array of it,
in one process: no checks, no hashes, nothing written.

What loads slowly is imported where it is used: the processes that pack import this module, as they import trainer's.
"""

from __future__ import annotations

import argparse
import io
import resource
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import record

PROCESSES = (1, 2)


@dataclass(frozen=True)
class Cost:
    """What reading a source took: tiles, seconds, and CPU seconds of all processes."""

    tiles: int
    seconds: float
    cpu_seconds: float


def main() -> None:
    """Measures, writes the result and shows it."""
    from benchmarks.tiffs import make_sources

    given = _arguments()
    costs: dict[tuple[str, str, int], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder)) | ({"JPEG folder": given.jpegs} if given.jpegs else {})
        for source, how, processes, cost in _measured(sources, Path(folder, "store"), given.rounds):
            costs.setdefault((source, how, processes), []).append(cost)
    rows = [_row(*key, costs[key]) for key in costs]
    record.write(given.output, {"rates": rows})
    Console(width=100).print(_table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack_rate", description=__doc__)
    parser.add_argument("--jpegs", type=Path, help="folder of class folders of JPEGs of one size")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "pack_rate.json", help="JSON file")
    return parser.parse_args()


def _measured(sources: dict[str, Path], store: Path, rounds: int) -> Iterator[tuple[str, str, int, Cost]]:
    """Every way to read every source, then all once more, ...: what else the machine does hits all alike."""
    from trainer.tiles.pack import pack

    def packed(source: Path, processes: int) -> int:
        with redirect_stdout(io.StringIO()):
            return pack(source, store, processes=processes).meta.tiles

    for number in range(rounds):
        for name, source in sources.items():
            print(f"round {number + 1} of {rounds}: {name}", flush=True)
            yield name, "Pillow", 1, cost_of(partial(read_plainly, source))
            for processes in PROCESSES:
                yield name, "pack", processes, cost_of(partial(packed, source, processes))
                shutil.rmtree(store)


def cost_of(read: Callable[[], int]) -> Cost:
    """What a function costs that returns how many tiles it read."""
    began, cpu_began = time.perf_counter(), _cpu_seconds()
    tiles = read()
    return Cost(tiles, time.perf_counter() - began, _cpu_seconds() - cpu_began)


def _cpu_seconds() -> float:
    """CPU seconds, of the system's too, of this process and of its children that have ended."""
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read_plainly(source: Path) -> int:
    """Opens and decodes every image of a folder or zip with Pillow; returns how many."""
    if source.is_dir():
        return sum(_decoded(path) for path in source.rglob("*") if path.is_file())
    with zipfile.ZipFile(source) as archive:
        return sum(_decoded(io.BytesIO(archive.read(name))) for name in archive.namelist())


def _decoded(file: Path | io.BytesIO) -> bool:
    with Image.open(file) as image:
        image.load()
        return np.asarray(image).size > 0


def _row(source: str, how: str, processes: int, costs: Sequence[Cost]) -> dict[str, Any]:
    return {
        "source": source,
        "how": how,
        "processes": processes,
        "tiles": costs[0].tiles,
        "tiles_per_s": record.spread([cost.tiles / cost.seconds for cost in costs]),
        "tiles_per_s_per_process": record.spread([cost.tiles / cost.seconds / processes for cost in costs]),
        "tiles_per_cpu_s": record.spread([cost.tiles / cost.cpu_seconds for cost in costs]),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("source", "how", title="Reading tiles, tiles/s (medians)", box=box.SIMPLE)
    for column in ("in all", "lowest", "highest", "a process", "a CPU s"):
        table.add_column(column, justify="right")
    for row in rows:
        rate, others = row["tiles_per_s"], (row["tiles_per_s_per_process"], row["tiles_per_cpu_s"])
        numbers = [rate["median"], rate["lowest"], rate["highest"], *(other["median"] for other in others)]
        table.add_row(row["source"], f"{row['how']} x {row['processes']}", *(f"{number:,.0f}" for number in numbers))
    return table


if __name__ == "__main__":
    main()
