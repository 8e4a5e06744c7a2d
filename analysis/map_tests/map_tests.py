"""Measures the maps of one set of tiles against what the tiles show, and against maps that know nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.collect import Predictions, Run
from analysis.evaluation import group_indices
from analysis.gradcam import Box, centred, class_maps, head_weights
from analysis.map_tests import nulls, words
from analysis.map_tests.contents import Contents, contents, nuclear_threshold
from analysis.map_tests.measures import area_auroc, border, heat_share, rank_correlation
from analysis.map_tests.names import (
    BORDER,
    CENTRED,
    FIBRES_AUROC,
    FIBRES_RHO,
    GLASS,
    HEAD,
    LIKENESS,
    NUCLEI_AUROC,
    NUCLEI_RHO,
    OTHER,
    OWN,
    SHIFTED,
    STAGE,
    TURNED,
)
from analysis.map_tests.perturbation import Curves, perturb
from analysis.map_tests.tables import associations, curve_areas, curve_points
from analysis.panels import places, refuse_one_cell
from trainer.config import AugmentSection
from trainer.errors import UsageError
from trainer.model import STAGES
from trainer.tiles.augment import evaluation_batch, evaluation_box

BATCH = 16
MOST = 40
PERTURBED = 4
"""Tiles of a class whose maps are measured, and of those that are deleted and inserted: 63 forward passes each."""
SEED = 0


@dataclass
class Cost:
    """What it took, seconds of wall clock."""

    passes: int = 0
    """Tiles that went through the whole network."""
    partial: int = 0
    """Tiles that went through untrained stages, from some stage to the last."""
    network_seconds: float = 0.0
    seconds: float = 0.0
    """Of everything, the network's included."""

    @contextmanager
    def network(self, passes: int = 0, partial: int = 0) -> Iterator[None]:
        """Counts passes, and the seconds of the block."""
        began = time.perf_counter()
        yield
        self.network_seconds += time.perf_counter() - began
        self.passes += passes
        self.partial += partial


@dataclass(frozen=True)
class MapTests:
    """What was measured of the maps of one set of tiles."""

    split: str
    kind: str
    """How the set was parted from the training tiles."""
    by_group: bool
    """Whether intervals are over groups (slides or patients); else over tiles, as groups are not known or too few."""
    grid: tuple[int, int]
    """Cells of a map: rows and columns."""
    threshold: float
    """Haematoxylin (optical density, log10) above which a pixel is nuclear, in all tiles."""
    tiles: pd.DataFrame
    """One row a tile: `tile_id, path, group, class, right, empty`, the shares of its own map's heat on glass and on
    the border, its shares of nuclei and glass and its coherence, and the AUROC that maps of the nuclei and of the
    coherence themselves would have."""
    measured: pd.DataFrame
    """One row a tile and map: `tile_id, class, map`, and the measures of `names.MEASURES`."""
    associations: pd.DataFrame
    """One row a class, measure and map: mean over the tiles with its 95 % interval, and how much the own map's is
    above it, tile by tile, with the interval of that."""
    curves: pd.DataFrame
    """Deletion and insertion: mean probability at each share, by class and over all."""
    areas: pd.DataFrame
    """Areas under those curves, and how much the own map's is above them."""
    claims: pd.DataFrame
    """One row a claim, with its verdict: `words.claims`."""
    perturbed: int
    """Tiles that were deleted and inserted."""
    sentences: dict[str, str]
    """For each class, what was measured."""
    notes: tuple[str, ...]
    """What one must know to read it all."""
    cost: Cost = field(compare=False)

    @property
    def empty(self) -> dict[str, int]:
        """Tiles of each class whose own map is zero everywhere: nothing is measured on them."""
        return {str(name): int(part.sum()) for name, part in self.tiles.groupby("class", observed=False)["empty"]}


def map_tests(
    run: Run,
    predictions: Predictions,
    model: nn.Sequential,
    augment: AugmentSection,
    *,
    most: int = MOST,
    perturbed: int = PERTURBED,
) -> MapTests:
    """Measures the map of each tile's own class (Grad-CAM at the last stage), on random tiles of each class.

    The same tiles and the same numbers in every report on the same predictions. Tiles are read in batches.

    Args:
        run: where the tiles are.
        predictions: the set.
        model: the run's best.
        augment: what the network saw.
        most: tiles of a class at most.
        perturbed: of those, how many are deleted and inserted; 0 leaves that out.

    Raises:
        UsageError: if there is no tile, the store is gone or not the one that the run was evaluated on, or the input is
            too small for a map.
    """
    began = time.perf_counter()
    if not len(predictions.labels):
        raise UsageError("no tile of the set has a class that the model knows")
    refuse_one_cell(augment.input_size)
    store = run.open_store(predictions.split)
    rows, is_perturbed = _sample(predictions, len(run.classes), most, perturbed)
    at = places(store, predictions.table["tile_id"].iloc[rows].tolist())
    order = np.argsort(at)
    rows, is_perturbed, at = rows[order], is_perturbed[order], at[order]
    batches = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
    threshold = nuclear_threshold(store.tiles[at[batch]] for batch in batches)
    bench = Bench(model, augment, evaluation_box(store.tile_size, augment), threshold)
    parts = [
        bench.test(store.tiles[at[batch]], predictions.labels[rows[batch]], is_perturbed[batch], number)
        for number, batch in enumerate(batches)
    ]
    return _together(run, predictions, rows, bench, parts, began)


def _sample(
    predictions: Predictions, classes: int, most: int, perturbed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of random tiles of each class, and which of them are to be perturbed; by tile id, not by order of rows."""
    ids = predictions.table["tile_id"].to_numpy(dtype=str)
    rows, is_perturbed = [], []
    for label in range(classes):
        members = np.flatnonzero(predictions.labels == label)
        drawn = np.random.default_rng([SEED, label]).permutation(members[np.argsort(ids[members])])[:most]
        rows.append(drawn)
        is_perturbed.append(np.arange(len(drawn)) < perturbed)
    return np.concatenate(rows), np.concatenate(is_perturbed)


@dataclass(frozen=True)
class Part:
    """What was measured on some tiles."""

    facts: pd.DataFrame
    measured: dict[str, pd.DataFrame]
    """By map."""
    curves: Curves | None
    is_perturbed: NDArray[np.bool_]
    grid: tuple[int, int]


class Bench:
    """A network and what its maps are held against."""

    def __init__(self, model: nn.Sequential, augment: AugmentSection, box: Box, threshold: float):
        self.model, self.augment, self.box, self.threshold = model, augment, box, threshold
        self.head = head_weights(model)
        self.heads = nulls.untrained_heads(*self.head.shape)
        self.cascade = nulls.Cascade(model)
        self.cost = Cost()

    @torch.inference_mode()
    def test(
        self, tiles: NDArray[np.uint8], labels: NDArray[np.int64], is_perturbed: NDArray[np.bool_], seed: int
    ) -> Part:
        """Measures the maps of the tiles' own classes `labels` (N,), and perturbs those whose map is not empty."""
        images = evaluation_batch(torch.from_numpy(tiles), self.augment)
        maps = self._maps(images, labels)
        own = maps[OWN][0]
        grid = (own.shape[1], own.shape[2])
        inside = contents(tiles, self.threshold, grid, self.box)
        shifted = contents(tiles, self.threshold, grid, _half_a_cell_up_and_left(self.box, grid))
        measured = {name: _measure(each, own, inside) for name, each in maps.items()}
        measured[SHIFTED] = _measure(maps[OWN], own, shifted)
        empty = ~own.any(axis=(1, 2))
        taken = is_perturbed & ~empty
        return Part(_facts(own, inside), measured, self._perturb(images, own, labels, taken, seed), taken, grid)

    def _maps(self, images: Tensor, labels: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Each kind's maps of the tiles' own classes, (K, N, h, w): one, or several whose measures are averaged."""
        with self.cost.network(len(images)):
            features, untrained = self.cascade.features(images)
        every = class_maps(features.numpy(), self.head)
        own = _of(every, labels)
        others = np.arange(every.shape[1] - 1) + (np.arange(every.shape[1] - 1) >= labels[:, None])
        maps = {
            OWN: own[None],
            CENTRED: _of(class_maps(features.numpy(), centred(self.head)), labels)[None],
            TURNED: nulls.turned(own),
            OTHER: every[np.arange(len(labels))[:, None], others].swapaxes(0, 1),
            HEAD: self._with_untrained_heads(features, labels),
        }
        for _ in STAGES[:-1]:
            with self.cost.network(partial=len(images)):
                stage, changed = next(untrained)
            maps[STAGE.format(stage)] = self._with_untrained_heads(changed, labels)
        return maps

    def _with_untrained_heads(self, features: Tensor, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([_of(class_maps(features.numpy(), head), labels) for head in self.heads])

    def _perturb(
        self,
        images: Tensor,
        maps: NDArray[np.float32],
        labels: NDArray[np.int64],
        taken: NDArray[np.bool_],
        seed: int,
    ) -> Curves | None:
        if not taken.any():
            return None
        with self.cost.network():
            found = perturb(self.model, images[torch.from_numpy(taken)], maps[taken], labels[taken], seed)
        self.cost.passes += found.images
        return found


def _of(maps: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each tile's map (N, h, w) of its own class, of the maps of all (N, C, h, w)."""
    return maps[np.arange(len(labels)), labels]


def _half_a_cell_up_and_left(box: Box, grid: tuple[int, int]) -> Box:
    """Where gradients say that a cell looks: strided convolutions with symmetric padding shift what they see."""
    top, left, height, width = box
    return top - height / grid[0] / 2, left - width / grid[1] / 2, height, width


def _measure(maps: NDArray[np.float32], own: NDArray[np.float32], inside: Contents) -> pd.DataFrame:
    """Every measure of each tile, averaged over maps (K, N, h, w) of one kind; NaN where a map says nothing."""
    edge = border((own.shape[1], own.shape[2]))
    at_edge = heat_share(maps, edge) - edge.mean() if edge.mean() < 1 else np.full(maps.shape[:2], np.nan)
    values = {
        NUCLEI_RHO: rank_correlation(maps, inside.nuclei),
        NUCLEI_AUROC: area_auroc(maps, inside.nuclei),
        FIBRES_RHO: rank_correlation(maps, inside.fibres),
        FIBRES_AUROC: area_auroc(maps, inside.fibres),
        GLASS: np.where(_has_both(inside.glass), heat_share(maps, inside.glass) - _share(inside.glass), np.nan),
        BORDER: at_edge,
        LIKENESS: rank_correlation(maps, own),
    }
    frame = pd.DataFrame({name: _mean_of_defined(value) for name, value in values.items()})
    return frame.assign(empty=(~maps.any(axis=(2, 3))).mean(axis=0))


def _has_both(glass: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tiles that have both glass and tissue, at least a hundredth of each: of others heat has no choice."""
    return np.abs(_share(glass) - 0.5) <= 0.49


def _share(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cells.mean(axis=(1, 2)))


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (N,) over the first axis of what is not NaN; NaN where all of it is."""
    there = ~np.isnan(values)
    counts = there.sum(axis=0)
    means: NDArray[np.float64] = np.full(values.shape[1], np.nan)
    np.divide(np.where(there, values, 0).sum(axis=0), counts, out=means, where=counts > 0)
    return means


def _facts(own: NDArray[np.float32], inside: Contents) -> pd.DataFrame:
    """What is said of each tile, and of its own map (N, h, w)."""
    return pd.DataFrame(
        {
            "empty": ~own.any(axis=(1, 2)),
            "heat on glass": heat_share(own, inside.glass),
            "heat on border": heat_share(own, border((own.shape[1], own.shape[2]))),
            "nuclear area": _share(inside.nuclei),
            "coherence": _share(inside.fibres),
            "glass": _share(inside.glass),
            "best nuclei AUROC": area_auroc(inside.nuclei, inside.nuclei),
            "best fibres AUROC": area_auroc(inside.fibres, inside.fibres),
        }
    )


def _together(
    run: Run,
    predictions: Predictions,
    rows: NDArray[np.int64],
    bench: Bench,
    parts: Sequence[Part],
    began: float,
) -> MapTests:
    labels = predictions.labels[rows]
    known = predictions.table.iloc[rows].reset_index(drop=True)
    names = pd.Categorical(np.asarray(run.classes, dtype=object)[labels], categories=list(run.classes))
    facts = pd.concat([part.facts for part in parts], ignore_index=True)
    right = predictions.predicted[rows] == labels
    tiles = pd.concat([known[["tile_id", "path", "group"]].assign(**{"class": names, "right": right}), facts], axis=1)
    groups = group_indices(known["group"])
    by_map = _by_map(parts)
    measured = pd.concat(
        [tiles[["tile_id", "class"]].assign(map=name).join(frame) for name, frame in by_map.items()], ignore_index=True
    )
    found = associations(by_map, labels, run.classes, groups)
    probabilities, taken = _probabilities(parts)
    of_curves = (probabilities, labels[taken], run.classes, None if groups is None else groups[taken])
    areas = curve_areas(*of_curves)
    grid, by_group = parts[0].grid, groups is not None
    bench.cost.seconds = time.perf_counter() - began
    return MapTests(
        split=predictions.split,
        kind=predictions.kind,
        by_group=by_group,
        grid=grid,
        threshold=bench.threshold,
        tiles=tiles,
        measured=measured,
        associations=found,
        curves=curve_points(*of_curves),
        areas=areas,
        claims=words.claims(run.classes, found),
        perturbed=int(taken.sum()),
        sentences=words.sentences(run.classes, tiles, found, areas),
        notes=tuple(words.notes(tiles, found, grid, bench.threshold, int(taken.sum()), by_group=by_group)),
        cost=bench.cost,
    )


def _by_map(parts: Sequence[Part]) -> Mapping[str, pd.DataFrame]:
    return {name: pd.concat([part.measured[name] for part in parts], ignore_index=True) for name in parts[0].measured}


def _probabilities(parts: Sequence[Part]) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_]]:
    """The curves of all perturbed tiles, None if there are none, and which tiles these are."""
    found = [part.curves.probabilities for part in parts if part.curves is not None]
    return np.concatenate(found) if found else None, np.concatenate([part.is_perturbed for part in parts])
