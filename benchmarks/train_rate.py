"""Training on this machine's CPU: Tissuegrid's loop against the loop it began with, in turn, on the same tiles.

Each measurement is a process of its own. The first loop runs as a user would run it; Tissuegrid's with the allocator
settings that its workers get, and (`system-allocator`) without them, to tell what those are worth.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.trainer_loop import NORMS, PRECISIONS
from cluster.ray_cluster import ENVIRONMENT
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source

TILES, SIZE, SEED = 256, 224, 0
DEPTHS = (0, 5)
ALLOCATOR = {key: value for key, value in ENVIRONMENT.items() if key.startswith("MALLOC_")}


@dataclass(frozen=True)
class Variant:
    """A way to train: the loop's module, its workers (Tissuegrid's alone has them), and who sets its allocator."""

    module: str
    what: str
    workers: int | None = None
    allocator: bool = False

    def environment(self) -> dict[str, str]:
        """What its process finds: no GPU, and no allocator settings but the variant's own."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        return {**inherited, "CUDA_VISIBLE_DEVICES": "", **(ALLOCATOR if self.allocator else {})}


VARIANTS = {
    "seed": Variant("seed_loop", "ImageFolder, PIL transforms, whole network in fp32"),
    "ours": Variant("trainer_loop", "one process, a thread a core", 1, True),
    "system-allocator": Variant("trainer_loop", "the same with glibc's defaults", 1),
    "two-workers": Variant("trainer_loop", "two gloo processes that share the cores", 2, True),
}
USUAL = ("seed", "ours", "system-allocator")


def main() -> None:
    """Measures, writes the result and shows it."""
    given = _arguments()
    rates: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_source(Path(folder, "source"), tiles=TILES, size=SIZE, seed=SEED)
        pack(manifest, Path(folder, "store"))
        for depth, name, rate in _measured(Path(folder), given):
            rates.setdefault((depth, name), []).append(rate)
    rows = [_row(rates, depth, name) for depth, name in rates]
    ours = {"norm": given.norm, "precision": given.precision, "allocator": ALLOCATOR}
    options = {"steps": given.steps, "tiles": TILES, "tile_size": SIZE, "ours": ours}
    record.write(given.output, {**options, "rates": rows})
    Console(width=100).print(_table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_rate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--steps", type=int, default=1, help="steps of 64 tiles that are timed, after one that is not")
    parser.add_argument("--depths", type=int, nargs="+", choices=DEPTHS, default=DEPTHS, help="unfrozen depths")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=USUAL, help=_described())
    parser.add_argument("--norm", choices=NORMS, default="frozen", help="Tissuegrid's BatchNorm where layers learn")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="Tissuegrid's; the peer's is fp32")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "train_rate.json", help="JSON file")
    return parser.parse_args()


def _described() -> str:
    return "; ".join(f"{name}: {variant.what}" for name, variant in VARIANTS.items())


def _measured(folder: Path, given: argparse.Namespace) -> Iterator[tuple[int, str, float]]:
    """Every variant once, then every variant once more, ...: what else the machine does hits all alike."""
    for number in range(given.rounds):
        for depth in given.depths:
            for name in given.variants:
                rate = _rate(VARIANTS[name], folder, depth, given)
                print(f"round {number + 1} of {given.rounds}, depth {depth}, {name}: {rate:.2f} tiles/s", flush=True)
                yield depth, name, rate


def _rate(variant: Variant, folder: Path, depth: int, given: argparse.Namespace) -> float:
    command = [sys.executable, "-m", f"benchmarks.{variant.module}", f"--depth={depth}", f"--steps={given.steps}"]
    if variant.workers is None:
        command += [str(folder / "source")]
    else:
        options = [f"--workers={variant.workers}", f"--norm={given.norm}", f"--precision={given.precision}"]
        command += [str(folder / "store"), *options]
    done = subprocess.run(command, env=variant.environment(), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[0])


def _row(rates: dict[tuple[int, str], list[float]], depth: int, name: str) -> dict[str, Any]:
    return {"depth": depth, "variant": name, "tiles_per_s": record.spread(rates[depth, name])}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("depth", "variant", title=f"Training at {SIZE} px, tiles/s", caption=_described(), width=80)
    for column in ("median", "lowest", "highest", "times the seed's"):
        table.add_column(column, justify="right")
    peers = {row["depth"]: row["tiles_per_s"]["median"] for row in rows if row["variant"] == "seed"}
    for row in rows:
        rate, peer = row["tiles_per_s"], peers.get(row["depth"])
        numbers = [f"{rate[key]:.2f}" for key in ("median", "lowest", "highest")]
        times = f"{rate['median'] / peer:.2f}" if peer else ""
        table.add_row(str(row["depth"]), row["variant"], *numbers, times)
    return table


if __name__ == "__main__":
    main()
