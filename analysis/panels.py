"""Which tiles stand for a class, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from analysis.collect import Predictions, Run
from analysis.gradcam import maps_of_tiles
from trainer.config import AugmentSection
from trainer.errors import UsageError
from trainer.tiles.augment import evaluation_batch, evaluation_box
from trainer.tiles.store import TileStore

CHOICES = RIGHT, WRONG, RANDOM = ("most confident right", "most confident wrong", "randomly chosen")
ABSENT = {
    RIGHT: "No tile of this class was classified right.",
    WRONG: "No tile of this class was classified wrong.",
    RANDOM: "There is no tile of this class.",
}
SEED = 0
STRIDE = 32
"""Side in input pixels of a cell of ResNet's last stage."""


@dataclass(frozen=True)
class Case:
    """One tile of a panel, with the map of the class that was predicted."""

    choice: str
    path: str
    true: int
    predicted: int
    probability: float
    """Of the predicted class."""
    tile: NDArray[np.uint8]
    """(H, W, 3)."""
    class_map: NDArray[np.float32]
    """(h, w), in units of the logit."""


@dataclass(frozen=True)
class Panel:
    """The tiles that stand for one true class."""

    label: int
    choices: dict[str, Case | None]
    """One tile a choice; None where there is no such tile."""

    @property
    def cases(self) -> list[Case]:
        """The tiles that there are."""
        return [case for case in self.choices.values() if case is not None]

    @property
    def highest(self) -> float:
        """Largest value of its maps: the upper end of the colour bar that they share."""
        return max((float(case.class_map.max()) for case in self.cases), default=0.0)


@dataclass(frozen=True)
class Panels:
    """The panels of one set of tiles."""

    classes: tuple[Panel, ...]
    grid: tuple[int, int]
    """Cells of a map: rows and columns."""
    input_size: int
    """Side of the network's square input, px."""
    box: tuple[float, float, float, float]
    """Top, left, height and width of what the network saw of each tile, in source pixels."""
    tile_size: tuple[int, int]
    mpp: float | None
    """Microns per pixel of the tiles."""

    @property
    def cell(self) -> tuple[float, float]:
        """Height and width of a map's cell on the tile, px."""
        return self.box[2] / self.grid[0], self.box[3] / self.grid[1]

    @property
    def is_cropped(self) -> bool:
        """Whether the network did not see the whole tile."""
        return self.box != (0.0, 0.0, *self.tile_size)


def choose(predictions: Predictions, label: int) -> dict[str, int]:
    """Rows of a class's tiles by choice; a choice for which there is none is left out.

    Equal probabilities go by tile id, and the random tile is the same in every report on the same tiles.
    """
    ids = predictions.table["tile_id"].to_numpy(dtype=str)
    members = np.flatnonzero(predictions.labels == label)
    confident = members[np.lexsort((ids[members], -predictions.probabilities.max(axis=1)[members]))]
    is_right = predictions.predicted[confident] == label
    chosen = {}
    for choice, rows in ((RIGHT, confident[is_right]), (WRONG, confident[~is_right])):
        if len(rows):
            chosen[choice] = int(rows[0])
    if len(members):
        by_id = members[np.argsort(ids[members])]
        chosen[RANDOM] = int(np.random.default_rng([SEED, label]).choice(by_id))
    return chosen


def make_panels(run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection) -> Panels:
    """Chooses tiles of each class, reads them, and computes their maps.

    Raises:
        UsageError: if there is no tile, the store is gone or not the one that the run was evaluated on, or the input is
            too small for a map.
    """
    if not len(predictions.labels):
        raise UsageError("no tile of the set has a class that the model knows")
    _refuse_one_cell(augment.input_size)
    store = run.open_store(predictions.split)
    chosen = [choose(predictions, label) for label in range(len(run.classes))]
    rows = sorted({row for choices in chosen for row in choices.values()})
    tiles = store.tiles[_places(store, predictions.table["tile_id"].iloc[rows].tolist())]
    every_map = maps_of_tiles(model, tiles, partial(evaluation_batch, augment=augment))
    found = {row: (tile, maps) for row, tile, maps in zip(rows, tiles, every_map, strict=True)}

    def case(choice: str, row: int) -> Case:
        tile, maps = found[row]
        predicted = int(predictions.predicted[row])
        return Case(
            choice=choice,
            path=str(predictions.table["path"].iloc[row]),
            true=int(predictions.labels[row]),
            predicted=predicted,
            probability=float(predictions.probabilities[row, predicted]),
            tile=tile,
            class_map=maps[predicted],
        )

    panels = tuple(
        Panel(label, {choice: case(choice, rows[choice]) if choice in rows else None for choice in CHOICES})
        for label, rows in enumerate(chosen)
    )
    rows_of_cells, columns_of_cells = every_map.shape[2:]
    return Panels(
        classes=panels,
        grid=(rows_of_cells, columns_of_cells),
        input_size=augment.input_size,
        box=evaluation_box(store.tile_size, augment),
        tile_size=store.tile_size,
        mpp=store.mpp,
    )


def _refuse_one_cell(input_size: int) -> None:
    if input_size <= STRIDE:
        raise UsageError(
            f"an input of {input_size} px leaves the network's last stage a single cell, which cannot say where in a "
            f"tile the evidence lies; train with an augment.input_size of {2 * STRIDE} (maps of 2 x 2 cells) or more "
            f"({7 * STRIDE}: 7 x 7)"
        )


def _places(store: TileStore, tile_ids: Sequence[str]) -> NDArray[np.int64]:
    """Row of each tile in its store."""
    places = {tile_id: place for place, tile_id in enumerate(store.index["tile_id"])}
    return np.array([places[tile_id] for tile_id in tile_ids], dtype=np.int64)
