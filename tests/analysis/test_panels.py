from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from analysis.collect import Predictions, collect
from analysis.gradcam import maps_of_tiles
from analysis.layer_maps import layer_maps
from analysis.map_kinds import LAYERCAM, MapKind
from analysis.panels import (
    NAMED,
    RANDOM,
    RANDOMS,
    RIGHT,
    TILES,
    UNSURE,
    WRONG,
    choose,
    find_tiles,
    make_panels,
    named_tiles,
)
from tests.analysis.made_runs import write_model, write_store
from trainer.checkpoint import MANIFEST, commit, listed, load_best_model, read
from trainer.config import AugmentSection
from trainer.ema import PREFIX
from trainer.errors import UsageError
from trainer.rundir import RunDir, read_json, write_json
from trainer.temperature import softmax
from trainer.tiles.augment import evaluation_batch

AUGMENT = AugmentSection(input_size=64)


def predictions(labels: list[int], logits: list[list[float]]) -> Predictions:
    ids = [f"{number:02d}" for number in range(len(labels))]
    table = pd.DataFrame({"tile_id": ids, "path": ids, "group": None, "label": ids})
    return Predictions("val", "tile-level split", table, np.array(labels), softmax(logits), {}, ("A", "B"))


def test_the_surest_right_and_the_surest_wrong_tile_are_chosen() -> None:
    made = predictions(
        [0, 0, 0, 0, 0, 1],
        [[2.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 4.0], [3.0, 0.0], [9.0, 0.0]],
    )
    chosen = choose(made, 0)
    assert chosen[RIGHT] == (1,)
    assert chosen[WRONG] == (3,)
    assert chosen[UNSURE] == (2,)
    assert len(set(chosen[RANDOM])) == RANDOMS
    assert set(chosen[RANDOM]) <= set(range(5))
    assert choose(made, 1) == {WRONG: (5,), UNSURE: (5,), RANDOM: (5,)}


def test_equal_certainty_goes_by_tile_id() -> None:
    made = predictions([0, 0, 0], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert choose(made, 0)[RIGHT] == (0,)
    assert choose(made, 0)[UNSURE] == (2,)


def ids(made: Predictions, rows: tuple[int, ...]) -> list[str]:
    return made.table["tile_id"].iloc[list(rows)].tolist()


def test_a_class_without_tiles_has_none() -> None:
    assert choose(predictions([0], [[1.0, 0.0, 0.0]]), 2) == {}


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 40).tolist(), rng.integers(-2, 3, (40, 2)).astype(float)
    made = predictions(labels, logits.tolist())
    order = rng.permutation(40)
    shuffled = Predictions(
        made.split, made.kind, made.table.iloc[order], made.labels[order], made.probabilities[order], {}, made.classes
    )
    for label in (0, 1):
        before = {choice: ids(made, rows) for choice, rows in choose(made, label).items()}
        after = {choice: ids(shuffled, rows) for choice, rows in choose(shuffled, label).items()}
        assert before == after


def test_panels_hold_the_tiles_they_name(run: RunDir) -> None:
    write_model(run, 3)
    [read] = collect([run.path])
    tiles = read.open_store("val").tiles
    panels = make_panels(read, read.predictions[0], load_best_model(run), AUGMENT)
    assert [panel.label for panel in panels.classes] == [0, 1, 2]
    assert panels.box == (0.0, 0.0, 48.0, 48.0)
    assert (panels.grid, panels.cell) == ((2, 2), (24, 24))
    for panel in panels.classes:
        assert [len(panel.choices[choice]) for choice in (RIGHT, UNSURE, RANDOM)] == [1, 1, RANDOMS]
        assert len(panel.cases) <= TILES
        for case in panel.cases:
            assert case.true == panel.label
            assert (case.predicted == case.true) == (case.choice == RIGHT) or case.choice in (UNSURE, RANDOM)
            np.testing.assert_array_equal(case.tile, tiles[tile_number(case.path)])
            assert case.class_map.max() <= panel.highest


def test_maps_are_of_the_averaged_weights(run: RunDir) -> None:
    """The same head, once learned and once as the average beside another that learned, gives the same maps."""
    write_model(run, 3)
    [found] = collect([run.path])
    plain = make_panels(found, found.predictions[0], load_best_model(run), AUGMENT)
    [checkpoint] = listed(run)
    head = read(checkpoint)[0]
    average = {f"{PREFIX}{name}": tensor for name, tensor in head.items()}
    facts = {"base_sha256": read_json(checkpoint.path / MANIFEST)["base_sha256"]}
    newer = commit(run, 40, 1, {**{name: -tensor for name, tensor in head.items()}, **average}, {}, facts)
    write_json(run.best_file, {**read_json(run.best_file), "checkpoint": newer.path.name})
    averaged = make_panels(found, found.predictions[0], load_best_model(run), AUGMENT)
    for panel, same in zip(plain.classes, averaged.classes, strict=True):
        for case, its in zip(panel.cases, same.cases, strict=True):
            np.testing.assert_array_equal(case.class_map, its.class_map)
    assert max(panel.highest for panel in plain.classes) > 0


def test_another_store_in_the_old_place_is_refused(run: RunDir) -> None:
    write_model(run, 3)
    [read] = collect([run.path])
    store = run.path.parents[1] / "store"
    store.rename(store.with_name("moved"))
    with pytest.raises(UsageError, match=f"{store}: the tile store is no longer there.*--store"):
        make_panels(read, read.predictions[0], load_best_model(run), AUGMENT)
    write_store(store, ["TUM"] * 4, np.zeros((4, 48, 48, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match="holds other tiles than the run knew there"):
        make_panels(read, read.predictions[0], load_best_model(run), AUGMENT)


@pytest.mark.parametrize(("size", "grid"), [(33, (2, 2)), (64, (2, 2)), (65, (3, 3))])
def test_the_grid_is_that_of_the_maps(run: RunDir, size: int, grid: tuple[int, int]) -> None:
    write_model(run, 3)
    [read] = collect([run.path])
    panels = make_panels(read, read.predictions[0], load_best_model(run), AugmentSection(input_size=size))
    assert panels.grid == grid
    assert {case.class_map.shape for panel in panels.classes for case in panel.cases} == {grid}
    assert panels.cell == pytest.approx((48 / grid[0], 48 / grid[1]))


def test_a_map_of_one_cell_is_refused(run: RunDir) -> None:
    write_model(run, 3)
    [read] = collect([run.path])
    with pytest.raises(UsageError, match=r"an input of 32 px .* a single cell.*augment.input_size of 64"):
        make_panels(read, read.predictions[0], load_best_model(run), AugmentSection(input_size=32))


def test_named_tiles_come_in_that_order_by_id_or_path(run: RunDir) -> None:
    write_model(run, 3)
    [found] = collect([run.path])
    val, model = found.predictions[0], load_best_model(run)
    first, second = val.table.iloc[3], val.table.iloc[1]
    view = named_tiles(found, val, model, AUGMENT, [first["path"], second["tile_id"], first["tile_id"]])
    cases = [each.case for each in view.tiles]
    assert [case.path for case in cases] == [first["path"], second["path"], first["path"]]
    assert {case.choice for case in cases} == {NAMED}
    assert cases[0].predicted == val.predicted[3]
    assert view.highest == max(case.class_map.max() for case in cases) > 0
    assert (view.grid, view.mpp) == ((2, 2), 0.5)


def test_one_tile_under_all_classes_has_the_map_of_each(run: RunDir) -> None:
    write_model(run, 3)
    [found] = collect([run.path])
    val, model = found.predictions[0], load_best_model(run)
    name = val.table["path"].iloc[2]
    [every] = named_tiles(found, val, model, AUGMENT, [name]).tiles
    assert every.class_maps.shape == every.centred_maps.shape == (3, 2, 2)
    tiles, transform = every.case.tile[None], partial(evaluation_batch, augment=AUGMENT)
    np.testing.assert_array_equal(every.class_maps, maps_of_tiles(model, tiles, transform)[0])
    np.testing.assert_array_equal(every.centred_maps, maps_of_tiles(model, tiles, transform, centre=True)[0])
    np.testing.assert_array_equal(every.class_maps[every.case.predicted], every.case.class_map)
    np.testing.assert_array_equal(every.case.tile, found.open_store("val").tiles[tile_number(name)])
    np.testing.assert_array_equal(every.probabilities, val.probabilities[2])
    assert (every.highest, every.highest_centred) == (every.class_maps.max(), every.centred_maps.max())


def tile_number(path: str) -> int:
    return int(path.split("/")[1].removesuffix(".png"))


def test_panels_at_another_stage_have_its_maps_of_the_predicted_classes(run: RunDir) -> None:
    write_model(run, 3)
    [found] = collect([run.path])
    val, model, kind = found.predictions[0], load_best_model(run), MapKind("layer3", LAYERCAM)
    panels = make_panels(found, val, model, AugmentSection(input_size=32), kind)
    assert (panels.grid, panels.kind) == ((2, 2), kind)
    transform = partial(evaluation_batch, augment=AugmentSection(input_size=32))
    for panel in panels.classes:
        for case in panel.cases:
            [expected] = layer_maps(model, case.tile[None], transform, np.array([case.predicted]), kind)
            np.testing.assert_allclose(case.class_map, expected, rtol=1e-3, atol=1e-5 * expected.max())
            assert case.class_map.max() > 0


def test_tiles_that_are_not_there_are_named_all_at_once() -> None:
    made = predictions([0, 1], [[1.0, 0.0], [0.0, 1.0]])
    assert find_tiles(made, ["01", "00"]) == [1, 0]
    with pytest.raises(UsageError, match=r"not among the scored tiles of val: 001 \(near: 0\d\), TUM/x.png$"):
        find_tiles(made, ["00", "001", "TUM/x.png"])
    with pytest.raises(UsageError, match="no tile is named"):
        find_tiles(made, [])


def test_predictions_of_another_store_are_refused(run: RunDir) -> None:
    write_model(run, 3)
    [found] = collect([run.path])
    val = found.predictions[0]
    strange = replace(val, table=val.table.assign(tile_id=[f"x{row}" for row in range(len(val.table))]))
    with pytest.raises(UsageError, match=r"store: lacks \d+ of the tiles that were predicted, e.g. x"):
        make_panels(found, strange, load_best_model(run), AUGMENT)
