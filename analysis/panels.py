"""Which tiles stand for a class, and their maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from analysis.collect import Predictions, Run
from analysis.layer_maps import maps_of_classes
from analysis.map_kinds import MapKind
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
PLAIN = MapKind()


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
    kind: MapKind

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


@dataclass(frozen=True)
class EveryClass:
    """One tile with the maps of all classes."""

    case: Case
    probabilities: NDArray[np.float64]
    """(C,)."""
    class_maps: NDArray[np.float32]
    """(C, h, w), in units of the logit."""
    centred_maps: NDArray[np.float32]
    """The same of each class against the mean of all."""

    @property
    def highest(self) -> float:
        """Largest value of its maps: the upper end of the colour bar that they share."""
        return float(self.class_maps.max())

    @property
    def highest_centred(self) -> float:
        """The same of the centred maps."""
        return float(self.centred_maps.max())


@dataclass(frozen=True, kw_only=True)
class NamedTiles(View):
    """Tiles that somebody asked for, in that order."""

    tiles: tuple[EveryClass, ...]

    @property
    def highest(self) -> float:
        """Largest value of the maps of the predicted classes: the upper end of the colour bar of the panel."""
        return _highest([each.case for each in self.tiles])


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


def make_panels(
    run: Run, predictions: Predictions, model: nn.Sequential, augment: AugmentSection, kind: MapKind = PLAIN
) -> Panels:
    """Chooses tiles of each class, reads them, and computes the maps of the classes that were predicted.

    Raises:
        UsageError: if there is no tile, the store is gone or not the one that the run was evaluated on, or the input is
            too small for a map.
    """
    if not len(predictions.labels):
        raise UsageError("no tile of the set has a class that the model knows")
    chosen = [choose(predictions, label) for label in range(len(run.classes))]
    rows = sorted({row for choices in chosen for some in choices.values() for row in some})
    sight = Sight(run, predictions, augment, rows, kind)
    found = sight.maps(model, predictions.predicted[rows][:, None])[:, 0]
    at = {row: place for place, row in enumerate(rows)}

    def cases(choice: str, some: Sequence[int]) -> tuple[Case, ...]:
        return tuple(sight.case(choice, at[row], found[at[row]]) for row in some)

    panels = tuple(
        Panel(label, {choice: cases(choice, some.get(choice, ())) for choice in CHOICES})
        for label, some in enumerate(chosen)
    )
    return Panels(classes=panels, **sight.view(found))


def named_tiles(
    run: Run,
    predictions: Predictions,
    model: nn.Sequential,
    augment: AugmentSection,
    names: Sequence[str],
    kind: MapKind = PLAIN,
) -> NamedTiles:
    """Tiles that are named by tile id or by path in their source, with the maps of all classes.

    Raises:
        UsageError: naming every tile that the set does not have, with what comes near; and as `make_panels`.
    """
    rows = find_tiles(predictions, names)
    sight = Sight(run, predictions, augment, rows, kind)
    every = np.tile(np.arange(len(run.classes)), (len(rows), 1))
    plain, centred = (sight.maps(model, every, centre=centre) for centre in (False, True))
    tiles = tuple(
        EveryClass(
            case=sight.case(NAMED, place, plain[place, predictions.predicted[row]]),
            probabilities=predictions.probabilities[row],
            class_maps=plain[place],
            centred_maps=centred[place],
        )
        for place, row in enumerate(rows)
    )
    return NamedTiles(tiles=tiles, **sight.view(plain))


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
        raise UsageError(f"not among the scored tiles of {predictions.split}: {', '.join(with_near(unknown, rows))}")
    return [rows[name] for name in names]


def with_near(unknown: Sequence[str], known: Iterable[str]) -> list[str]:
    """Names that are not known, each with the known one that comes near, if any does."""
    known = list(known)
    near = {name: get_close_matches(name, known, n=1) for name in unknown}
    return [f"{name} (near: {near[name][0]})" if near[name] else name for name in unknown]


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


def refuse_one_cell(input_size: int, kind: MapKind = PLAIN) -> None:
    """Refuses an input (side in px) that leaves a stage a single cell.

    Raises:
        UsageError: with the smallest input that would do.
    """
    if input_size <= kind.stride:
        raise UsageError(
            f"an input of {input_size} px leaves the network's {kind.layer} a single cell, which cannot say where in a "
            f"tile the evidence lies; train with an augment.input_size of {2 * kind.stride} (maps of 2 x 2 cells) or "
            f"more ({7 * kind.stride}: 7 x 7)"
        )


class Sight:
    """The tiles at some rows of a set's predictions, as the network sees them.

    Raises:
        UsageError: as `make_panels`.
    """

    def __init__(self, run: Run, predictions: Predictions, augment: AugmentSection, rows: Sequence[int], kind: MapKind):
        refuse_one_cell(augment.input_size, kind)
        self.predictions, self.augment, self.rows, self.kind = predictions, augment, rows, kind
        self.store = run.open_store(predictions.split)
        self.tiles = self.store.tiles[places(self.store, predictions.table["tile_id"].iloc[list(rows)].tolist())]

    def maps(self, model: nn.Sequential, labels: NDArray[np.int64], *, centre: bool = False) -> NDArray[np.float32]:
        """Maps (N, L, h, w) of the classes `labels` (N, L) of each tile; `centre` as of `maps_of_classes`."""
        transform = partial(evaluation_batch, augment=self.augment)
        return maps_of_classes(model, self.tiles, transform, labels, self.kind, centre=centre)

    def case(self, choice: str, place: int, class_map: NDArray[np.float32]) -> Case:
        """The tile at a place among the rows, with the map (h, w) of the class that was predicted."""
        row = self.rows[place]
        predicted = int(self.predictions.predicted[row])
        return Case(
            choice=choice,
            path=str(self.predictions.table["path"].iloc[row]),
            true=int(self.predictions.labels[row]),
            predicted=predicted,
            probability=float(self.predictions.probabilities[row, predicted]),
            tile=self.tiles[place],
            class_map=class_map,
        )

    def view(self, maps: NDArray[np.float32]) -> dict[str, Any]:
        """The fields of `View`, of maps (..., h, w)."""
        return {
            "grid": maps.shape[-2:],
            "input_size": self.augment.input_size,
            "box": evaluation_box(self.store.tile_size, self.augment),
            "tile_size": self.store.tile_size,
            "mpp": self.store.mpp,
            "kind": self.kind,
        }


def _highest(cases: Sequence[Case]) -> float:
    return max((float(case.class_map.max()) for case in cases), default=0.0)
