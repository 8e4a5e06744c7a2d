"""What the page shows of maps: panels of each class, tiles that were asked for, and what maps lie on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from analysis import figures
from analysis.collect import Model, Predictions, Run
from analysis.gradcam import on_tile
from analysis.map_kinds import MapKind
from analysis.map_tests import figures as map_figures
from analysis.map_tests.map_tests import MapTests, map_tests
from analysis.panels import (
    NAMED,
    Case,
    EveryClass,
    NamedTiles,
    Panel,
    Panels,
    View,
    has_tile,
    make_panels,
    named_tiles,
)
from analysis.report.writer import Picture, Writer, as_uri, webp_uri
from trainer.checkpoint import load_best_model
from trainer.config import AugmentSection, load_config
from trainer.errors import RunError, UsageError
from trainer.wording import counted

MEASURED, LEAST_CELLS = 12, 3
"""Tiles of a class whose maps are measured unless a number is given, and how many cells a side they must have then. Of
nine classes that takes about 1,000 forward passes."""
FEWER_PERTURBED = 10
"""Of so many tiles whose maps are measured, one is deleted and inserted, which takes 63 forward passes."""


@dataclass(frozen=True)
class Shown:
    """A tile and its map as they stand on the page."""

    case: Case
    tile: str
    overlay: str


@dataclass(frozen=True)
class Maps:
    """The maps of one set of tiles, a row for each true class."""

    panels: Panels
    cells: str
    """What a cell of a map covers."""
    rows: list[tuple[Panel, dict[str, list[Shown]]]]

    @property
    def shows_some(self) -> bool:
        """Whether there are tiles that the page has no room for."""
        return any(len(panel.cases) > sum(map(len, choices.values())) for panel, choices in self.rows)


@dataclass(frozen=True)
class ChosenTile:
    """One tile that was asked for, with the map of the predicted class, and under every class."""

    seen: EveryClass
    shown: Shown
    overlays: list[tuple[int, str, str]]
    """Class, its map and the centred one, the most probable class first."""


@dataclass(frozen=True)
class Chosen:
    """The tiles of a set that were asked for."""

    named: NamedTiles
    tiles: list[ChosenTile]


@dataclass(frozen=True)
class MeasuredMaps:
    """What the maps of a set lie on."""

    tests: MapTests
    pictures: list[Picture]


@dataclass(frozen=True)
class Explainer:
    """What the maps of a run are made with."""

    model: nn.Sequential
    augment: AugmentSection


def find_explainer(run: Model) -> Explainer | str:
    """The best model and its evaluation transform, or why they cannot be had."""
    if not isinstance(run, Run):
        return "these predictions came without their run, so there is no model to explain"
    try:
        return Explainer(load_best_model(run.directory), load_config(run.directory.config_file).augment)
    except (UsageError, RunError) as error:
        return (
            f"{error}. The scores still hold. For maps restore what is damaged from a copy, or remove "
            f"{run.directory.predictions_dir} and start the same training again, which goes on from what is whole"
        )


def draw_maps(writer: Writer, predictions: Predictions, explainer: Explainer, kind: MapKind) -> Maps | str:
    """The panels of each class, also as one sheet among the files; or why there are none."""
    try:
        assert isinstance(writer.model, Run), "there is a model to explain"
        panels = make_panels(writer.model, predictions, explainer.model, explainer.augment, kind)
    except UsageError as error:
        return str(error)
    rows, sheet = [], []
    for panel in panels.classes:
        drawn = [(case, *_draw(case, panels, panel.highest, writer.room.edge)) for case in panel.cases]
        shown = [Shown(case, webp_uri(tile), webp_uri(heat)) for case, tile, heat in drawn[: writer.room.tiles]]
        rows.append((panel, {choice: [one for one in shown if one.case.choice == choice] for choice in panel.choices}))
        cases = [(tile, heat, _caption(case, writer.codes)) for case, tile, heat in drawn]
        sheet.append((writer.codes[panel.label], cases, panel.highest))
    _sheet(writer, predictions, kind, sheet, "maps")
    return Maps(panels, _cells(panels), rows)


def _sheet(writer: Writer, predictions: Predictions, kind: MapKind, rows: Sequence[figures.MapRow], name: str) -> None:
    """Tiles and their maps as one picture among the files."""
    title = writer.title(f"{kind} of the predicted class; bars: {kind.unit}", predictions.split, predictions.kind)
    figures.png(figures.map_sheet(rows, title), writer.folder / f"{predictions.split}-{name}.png")


def draw_chosen(
    writer: Writer, predictions: Predictions, explainer: Explainer | str, names: Sequence[str], kind: MapKind
) -> Chosen | None:
    """The tiles of the set that were asked for, also as one sheet among the files; None where there are none."""
    here = [name for name in names if has_tile(predictions, name)]
    if isinstance(explainer, str) or not here:
        return None
    assert isinstance(writer.model, Run), "there is a model to explain"
    try:
        named = named_tiles(writer.model, predictions, explainer.model, explainer.augment, here, kind)
    except UsageError:
        return None  # as are the other maps, which say why
    drawn = [(each.case, *_draw(each.case, named, named.highest, writer.room.edge)) for each in named.tiles]
    cases = [(tile, heat, _caption(case, writer.codes)) for case, tile, heat in drawn]
    _sheet(writer, predictions, kind, [(NAMED, cases, named.highest)], "maps-chosen")
    tiles = [
        ChosenTile(each, Shown(case, webp_uri(tile), webp_uri(heat)), _under_every_class(each, tile, named))
        for each, (case, tile, heat) in zip(named.tiles, drawn, strict=True)
    ]
    return Chosen(named, tiles)


def _under_every_class(seen: EveryClass, tile: figures.Pixels, view: View) -> list[tuple[int, str, str]]:
    def drawn(class_map: NDArray[np.float32], highest: float) -> str:
        return webp_uri(_overlay(tile, class_map, view, highest))

    return [
        (index, drawn(seen.class_maps[index], seen.highest), drawn(seen.centred_maps[index], seen.highest_centred))
        for index in np.argsort(-seen.probabilities, kind="stable").tolist()
    ]


def measure_maps(
    writer: Writer, predictions: Predictions, explainer: Explainer | str, tiles: int | None
) -> MeasuredMaps | str | None:
    """What the maps of some tiles of each class lie on; of a few of them the evidence is deleted and inserted too.

    It is why there is nothing to measure, or None where nothing is asked for. Where no number is given, a few tiles
    are taken where maps have enough cells.
    """
    if isinstance(explainer, str) or tiles == 0:
        return None
    if tiles is None:
        tiles, side = MEASURED, explainer.augment.input_size
        if side < LEAST_CELLS * MapKind().stride:
            return (
                f"an input of {side} px gives too few cells to tell what they lie on (--measured-maps N does it still)"
            )
    assert isinstance(writer.model, Run), "there is a model to explain"
    run, split = writer.model, predictions.split
    try:
        tests = map_tests(
            run, predictions, explainer.model, explainer.augment, most=tiles, perturbed=max(1, tiles // FEWER_PERTURBED)
        )
    except UsageError as error:
        return str(error)
    for name in ("claims", "tiles", "associations", "areas", "curves"):
        writer.table(getattr(tests, name), f"{split}-maps-{name}")
    title = writer.title("What maps lie on, against maps that know nothing", split, predictions.kind)
    drawn = map_figures.associations(tests.associations, run.classes, writer.codes, title)
    pictures = [writer.picture(drawn, f"{split}-maps-associations", f"What maps lie on, on {split}", wide=True)]
    if not tests.curves.empty:
        told = f"Deletion and insertion, {counted(tests.perturbed, 'tile')} of all classes"
        title = writer.title(told, split, predictions.kind)
        drawn = map_figures.curves(tests.curves, tests.areas, title)
        pictures.append(writer.picture(drawn, f"{split}-maps-curves", f"Deletion and insertion on {split}", wide=True))
    return MeasuredMaps(tests, pictures)


def _cells(panels: Panels) -> str:
    """The grid of a map, and the size of its cells on the network's input and on the tile."""
    rows, columns = panels.grid
    height, width = panels.cell
    on_input = _size(panels.input_size / rows, panels.input_size / columns, "px")
    on_tile = _size(height, width, "px")
    if panels.mpp is not None:
        on_tile += f" ({_size(height * panels.mpp, width * panels.mpp, 'µm')})"
    return f"Maps of {rows} x {columns} cells; a cell is {on_input} of the input, {on_tile} of the tile"


def _size(height: float, width: float, unit: str) -> str:
    """A square's side, or both sides of what is none."""
    return " x ".join(dict.fromkeys((f"{height:.0f}", f"{width:.0f}"))) + f" {unit}"


def _draw(case: Case, view: View, highest: float, edge: int) -> tuple[figures.Pixels, figures.Pixels]:
    """A tile and its overlay, at most `edge` px wide and high."""
    tile = _shrunk(case.tile, edge)
    return tile, _overlay(tile, case.class_map, view, highest)


def _overlay(tile: figures.Pixels, class_map: NDArray[np.float32], view: View, highest: float) -> figures.Pixels:
    """A map over a tile that may have been made smaller; nothing where the map is zero everywhere: that is no evidence.

    Args:
        tile: (H, W, 3).
        class_map: (h, w).
        view: how it lies on the tile.
        highest: the map's value at the upper end of the colours.
    """
    size = (tile.shape[0], tile.shape[1])
    down, right = size[0] / view.tile_size[0], size[1] / view.tile_size[1]
    top, left, height, width = view.box
    box = (top * down, left * right, height * down, width * right)
    heat = on_tile(class_map, size, box) if class_map.any() else np.full(size, np.nan)
    return figures.overlay(tile, heat, highest)


def _shrunk(tile: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    image = Image.fromarray(tile)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _caption(case: Case, codes: list[str]) -> str:
    return f"{codes[case.true]}, predicted {codes[case.predicted]} ({case.probability:.3f})\n{case.choice}"


def colour_bar_uri() -> str:
    """The maps' colours, from the highest value above to 0 below."""
    return as_uri("image/png", figures.picture(figures.colour_bar(), format="PNG"))
