"""Which tiles stand for a class, and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from analysis.collect import Predictions, Run
from analysis.gradcam import maps_of_tiles
from trainer.config import AugmentSection
from trainer.errors import UsageError
from trainer.tiles.augment import evaluation_batch, evaluation_box
from trainer.tiles.store import TileStore

RANDOMS = 3
CHOICES = RIGHT, WRONG, UNSURE, RANDOM = (
    "most confident right",
    "most confident wrong",
    "least certain",
    "randomly chosen",
)
TILES = 3 + RANDOMS
"""That a panel has at most."""
ABSENT = {
    RIGHT: "No tile of this class was classified right.",
    WRONG: "No tile of this class was classified wrong.",
    UNSURE: "There is no tile of this class.",
    RANDOM: "There is no tile of this class.",
}
NAMED = "chosen by name"
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

    @property
    def is_empty(self) -> bool:
        """Whether the map is zero everywhere, and no evidence of anything."""
        return not self.class_map.any()


@dataclass(frozen=True)
class Panel:
    """The tiles that stand for one true class."""

    label: int
    choices: dict[str, tuple[Case, ...]]
    """By choice: one tile, up to `RANDOMS` random ones; none where there is no such tile."""

    @property
    def cases(self) -> list[Case]:
        """The tiles that there are."""
        return [case for cases in self.choices.values() for case in cases]

    @property
    def highest(self) -> float:
        """Largest value of its maps: the upper end of the colour bar that they share."""
        return _highest(self.cases)


@dataclass(frozen=True, kw_only=True)
class View:
    """How maps lie on the tiles of one set."""

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


@dataclass(frozen=True, kw_only=True)
class Panels(View):
    """The panels of one set of tiles."""

    classes: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class NamedTiles(View):
    """Tiles that somebody asked for, in that order."""

    cases: tuple[Case, ...]

    @property
    def highest(self) -> float:
        """Largest value of its maps."""
        return _highest(self.cases)


@dataclass(frozen=True, kw_only=True)
class EveryClass(View):
    """One tile with the maps of all classes, which share a colour bar."""

    path: str
    true: int
    probabilities: NDArray[np.float64]
    """(C,)."""
    tile: NDArray[np.uint8]
    """(H, W, 3)."""
    class_maps: NDArray[np.float32]
    """(C, h, w), in units of the logit."""

    @property
    def highest(self) -> float:
        """Largest value of its maps."""
        return float(self.class_maps.max())


def choose(predictions: Predictions, label: int) -> dict[str, tuple[int, ...]]:
    """Rows of a class's tiles by choice; a choice for which there is none is left out.

    Certainty is the highest probability. Equal ones go by tile id, and the random tiles are the same in every report on
    the same tiles; they may be among the others.
    """
    ids = predictions.table["tile_id"].to_numpy(dtype=str)
    members = np.flatnonzero(predictions.labels == label)
    confident = members[np.lexsort((ids[members], -predictions.probabilities.max(axis=1)[members]))]
    is_right = predictions.predicted[confident] == label
    by_id = members[np.argsort(ids[members])]
    drawn = np.random.default_rng([SEED, label]).permutation(by_id)[:RANDOMS]
    rows = (confident[is_right][:1], confident[~is_right][:1], confident[-1:], drawn)
    return {choice: tuple(some.tolist()) for choice, some in zip(CHOICES, rows, strict=True) if len(some)}


def make_panels(run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection) -> Panels:
    """Chooses tiles of each class, reads them, and computes their maps.

    Raises:
        UsageError: if there is no tile, the store is gone or not the one that the run was evaluated on, or the input is
            too small for a map.
    """
    if not len(predictions.labels):
        raise UsageError("no tile of the set has a class that the model knows")
    chosen = [choose(predictions, label) for label in range(len(run.classes))]
    rows = sorted({row for choices in chosen for some in choices.values() for row in some})
    sight = _look(run, predictions, model, augment, rows)
    panels = tuple(
        Panel(label, {choice: tuple(sight.case(choice, row) for row in some.get(choice, ())) for choice in CHOICES})
        for label, some in enumerate(chosen)
    )
    return Panels(classes=panels, **sight.view)


def named_tiles(
    run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection, names: Sequence[str]
) -> NamedTiles:
    """The maps of tiles that are named by tile id or by path in their source.

    Raises:
        UsageError: naming every tile that the set does not have, with what comes near; and as `make_panels`.
    """
    rows = find_tiles(predictions, names)
    sight = _look(run, predictions, model, augment, sorted(set(rows)))
    return NamedTiles(cases=tuple(sight.case(NAMED, row) for row in rows), **sight.view)


def under_every_class(
    run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection, name: str
) -> EveryClass:
    """One tile, by tile id or path, with the maps of all classes.

    Raises:
        UsageError: as `named_tiles`.
    """
    [row] = find_tiles(predictions, [name])
    sight = _look(run, predictions, model, augment, [row])
    tile, class_maps = sight.found[row]
    return EveryClass(
        path=str(predictions.table["path"].iloc[row]),
        true=int(predictions.labels[row]),
        probabilities=predictions.probabilities[row],
        tile=tile,
        class_maps=class_maps,
        **sight.view,
    )


def has_tile(predictions: Predictions, name: str) -> bool:
    """Whether a set has a tile of that id or path."""
    return bool(predictions.table[["path", "tile_id"]].isin([name]).to_numpy().any())


def find_tiles(predictions: Predictions, names: Sequence[str]) -> list[int]:
    """Rows of tiles that are named by tile id or by path.

    Raises:
        UsageError: if none are named, or naming every tile that the set does not have.
    """
    if not names:
        raise UsageError("no tile is named; name some by tile id or by their path in the source")
    rows = {str(name): row for column in ("path", "tile_id") for row, name in enumerate(predictions.table[column])}
    unknown = [name for name in names if name not in rows]
    if unknown:
        near = {name: get_close_matches(name, rows, n=1) for name in unknown}
        said = [f"{name} (near: {near[name][0]})" if near[name] else name for name in unknown]
        raise UsageError(f"not among the scored tiles of {predictions.split}: {', '.join(said)}")
    return [rows[name] for name in names]


def places(store: TileStore, tile_ids: Sequence[str]) -> NDArray[np.int64]:
    """Row of each tile in its store.

    Raises:
        UsageError: if the store lacks one.
    """
    rows = np.asarray(pd.Index(store.index["tile_id"]).get_indexer(pd.Index(tile_ids)), dtype=np.int64)
    if len(lacking := np.flatnonzero(rows < 0)):
        raise UsageError(
            f"{store.path}: lacks {len(lacking)} of the tiles that were predicted, e.g. {tile_ids[lacking[0]]}; are "
            "these predictions of another store?"
        )
    return rows


def refuse_one_cell(input_size: int) -> None:
    """Refuses an input (side in px) that leaves the last stage a single cell.

    Raises:
        UsageError: with the smallest input that would do.
    """
    if input_size <= STRIDE:
        raise UsageError(
            f"an input of {input_size} px leaves the network's last stage a single cell, which cannot say where in a "
            f"tile the evidence lies; train with an augment.input_size of {2 * STRIDE} (maps of 2 x 2 cells) or more "
            f"({7 * STRIDE}: 7 x 7)"
        )


@dataclass(frozen=True)
class Sight:
    """Some tiles and their maps."""

    predictions: Predictions
    found: dict[int, tuple[NDArray[np.uint8], NDArray[np.float32]]]
    """By row: the tile (H, W, 3) and the maps of all classes (C, h, w)."""
    view: dict[str, Any]
    """The fields of `View`."""

    def case(self, choice: str, row: int) -> Case:
        """One of the tiles with the map of the class that was predicted."""
        tile, class_maps = self.found[row]
        predicted = int(self.predictions.predicted[row])
        return Case(
            choice=choice,
            path=str(self.predictions.table["path"].iloc[row]),
            true=int(self.predictions.labels[row]),
            predicted=predicted,
            probability=float(self.predictions.probabilities[row, predicted]),
            tile=tile,
            class_map=class_maps[predicted],
        )


def _look(
    run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection, rows: Sequence[int]
) -> Sight:
    """Reads the tiles at `rows` of the predictions, and computes their maps."""
    refuse_one_cell(augment.input_size)
    store = run.open_store(predictions.split)
    tiles = store.tiles[places(store, predictions.table["tile_id"].iloc[list(rows)].tolist())]
    class_maps = maps_of_tiles(model, tiles, partial(evaluation_batch, augment=augment))
    view = {
        "grid": (class_maps.shape[2], class_maps.shape[3]),
        "input_size": augment.input_size,
        "box": evaluation_box(store.tile_size, augment),
        "tile_size": store.tile_size,
        "mpp": store.mpp,
    }
    return Sight(predictions, dict(zip(rows, zip(tiles, class_maps, strict=True), strict=True)), view)


def _highest(cases: Sequence[Case]) -> float:
    return max((float(case.class_map.max()) for case in cases), default=0.0)
