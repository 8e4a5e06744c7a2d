import numpy as np
import pandas as pd
import pytest

from analysis.collect import Predictions, collect
from analysis.panels import RANDOM, RIGHT, WRONG, choose, make_panels
from analysis.scores import softmax
from tests.analysis.made_runs import write_model, write_store
from trainer.checkpoint import MANIFEST, commit, listed, load_best_model, read
from trainer.config import AugmentSection
from trainer.ema import PREFIX
from trainer.errors import UsageError
from trainer.rundir import RunDir, read_json, write_json

AUGMENT = AugmentSection(input_size=64)


def predictions(labels: list[int], logits: list[list[float]]) -> Predictions:
    ids = [f"{number:02d}" for number in range(len(labels))]
    table = pd.DataFrame({"tile_id": ids, "path": ids, "group": None, "label": ids})
    return Predictions("val", "tile-level split", table, np.array(labels), softmax(logits), {})


def test_the_surest_right_and_the_surest_wrong_tile_are_chosen() -> None:
    made = predictions(
        [0, 0, 0, 0, 0, 1],
        [[2.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 4.0], [3.0, 0.0], [9.0, 0.0]],
    )
    chosen = choose(made, 0)
    assert chosen[RIGHT] == 1
    assert chosen[WRONG] == 3
    assert chosen[RANDOM] in range(5)
    assert choose(made, 1) == {WRONG: 5, RANDOM: 5}


def test_a_class_without_tiles_has_none() -> None:
    assert choose(predictions([0], [[1.0, 0.0, 0.0]]), 2) == {}


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 40).tolist(), rng.integers(-2, 3, (40, 2)).astype(float)
    made = predictions(labels, logits.tolist())
    order = rng.permutation(40)
    shuffled = Predictions(
        made.split, made.kind, made.table.iloc[order], made.labels[order], made.probabilities[order], {}
    )
    for label in (0, 1):
        before = {choice: made.table["tile_id"].iloc[row] for choice, row in choose(made, label).items()}
        after = {choice: shuffled.table["tile_id"].iloc[row] for choice, row in choose(shuffled, label).items()}
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
        assert panel.choices[RIGHT] is not None
        for case in panel.cases:
            assert case.true == panel.label
            assert (case.predicted == case.true) == (case.choice == RIGHT) or case.choice == RANDOM
            np.testing.assert_array_equal(case.tile, tiles[int(case.path.split("/")[1].removesuffix(".png"))])
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
