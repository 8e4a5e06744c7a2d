"""From the tile store to uint8 batches on the device: one thread gathers ahead of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AHEAD = 3


@dataclass(frozen=True)
class TileSet:
    """Tiles of a store that belong together, such as its training split.

    `rows` (n,) are their rows in the store's `tiles` (N, H, W, 3); `labels` (n,) index the run's classes, -1 where a
    label is unknown.
    """

    tiles: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width, px."""
        return int(self.tiles.shape[1]), int(self.tiles.shape[2])

    def gather(self, members: NDArray[np.int64], pin: bool) -> Tensor:
        """(n, H, W, 3) uint8 of some members of the set, read in storage order."""
        rows = self.rows[members]
        reading = np.argsort(rows, kind="stable")
        out = torch.empty((len(rows), *self.tiles.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        array = out.numpy()
        for place in reading:
            array[place] = self.tiles[rows[place]]
        return out


def batches(
    tiles: TileSet, members: Sequence[NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
    """Yields (members, uint8 tiles (n, H, W, 3), labels (n,)) for each array of members, tiles and labels on `device`.

    The next batches are gathered meanwhile; from pinned memory they are copied to a GPU while it computes.
    """
    pin = device.type == "cuda"
    todo = iter(members)
    with ThreadPoolExecutor(1, "gather") as pool:
        queue: list[tuple[NDArray[np.int64], Future[Tensor]]] = []
        try:
            queue += [(some, pool.submit(tiles.gather, some, pin)) for some in islice(todo, AHEAD)]
            while queue:
                some, future = queue.pop(0)
                queue += [(more, pool.submit(tiles.gather, more, pin)) for more in islice(todo, 1)]
                labels = torch.from_numpy(tiles.labels[some])
                yield some, future.result().to(device, non_blocking=pin), labels.to(device, non_blocking=pin)
        finally:
            for _, future in queue:
                future.cancel()
