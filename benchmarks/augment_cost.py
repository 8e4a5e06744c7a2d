"""What each augmentation costs on the CPU: processor time a tile, at 224 px, in one thread.

Processor time, not wall time, so that other programs on the machine disturb it less.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from trainer.config import AugmentSection
from trainer.tiles.augment import draw, training_batch

TILES, SIZE, STORE = 64, 224, 100_000
OPTIONS: dict[str, dict[str, float]] = {
    "defaults": {},
    "rot90": {"rot90": True},
    "hue": {"hue": 0.05},
    "stain": {"stain": 0.1},
    "all three": {"rot90": True, "hue": 0.05, "stain": 0.1},
}


def main() -> None:
    """Measures, writes the result and shows it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augment_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured, in turn")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "augment_cost.json", help="JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(0, 255, (TILES, SIZE, SIZE, 3), dtype=np.uint8))
    rows = rng.choice(STORE, TILES, replace=False)
    costs: dict[str, list[float]] = {name: [] for name in OPTIONS}
    for epoch in range(given.rounds + 1):  # the first is not counted
        for name, options in OPTIONS.items():
            cost = measure(tiles, rows, epoch, AugmentSection.model_validate(options))
            costs[name] += [cost] if epoch else []
    found = {name: record.spread(values) for name, values in costs.items()}
    record.write(given.output, {"tiles": TILES, "tile_size": SIZE, "cpu_ms_per_tile": found})
    table = Table("augmentations", "CPU ms a tile", "lowest", "highest")
    for name, spread in found.items():
        table.add_row(name, *(f"{spread[key]:.2f}" for key in ("median", "lowest", "highest")))
    Console(width=100).print(table)


def measure(tiles: torch.Tensor, rows: np.ndarray, epoch: int, augment: AugmentSection) -> float:
    """Processor time of drawing for a batch and augmenting it, ms a tile."""
    began = time.process_time()
    training_batch(tiles, draw(rows, 0, epoch, (SIZE, SIZE), augment), augment)
    return 1000 * (time.process_time() - began) / len(rows)


if __name__ == "__main__":
    main()
