from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.audit.sets import TRAIN, UNSPLIT, VAL, sets_of_run, sets_of_stores
from analysis.collect import read_run
from tests.analysis.audit.made_tiles import clean_store, make_store, tissue
from trainer.errors import UsageError
from trainer.rundir import RunDir
from trainer.tiles.store import TileStore


def test_a_store_that_says_its_split_keeps_it(tmp_path: Path) -> None:
    splits = ["train", "val", "test", "train"] * 10
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(40), ["A", "B"] * 20, splits=splits)])
    assert sets.kind == "source's own split"
    assert sets.names == ["train", "val", "test"]
    said = {int(Path(path).stem): name for path, name in sets.tiles[["path", "set"]].itertuples(index=False)}
    assert [said[k] for k in range(40)] == splits


def test_a_store_with_groups_is_split_by_group_and_says_so(tmp_path: Path) -> None:
    sets = sets_of_stores([clean_store(tmp_path / "store", 120)])
    assert sets.kind == "group-level split"
    assert "whole groups" in sets.said
    groups = [set(sets.tiles["group"][sets.of(name)]) for name in (TRAIN, VAL)]
    assert not groups[0] & groups[1]
    again = sets_of_stores([tmp_path / "store"])
    pd.testing.assert_frame_equal(again.tiles, sets.tiles)


def test_a_store_without_groups_is_split_by_tile_and_says_so(tmp_path: Path) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(100), ["A", "B"] * 50)])
    assert sets.kind == "tile-level split"
    assert "tile by tile" in sets.said
    assert sets.of(VAL).sum() == 15
    assert sets.described(VAL) == "val, tile-level split, 15 tiles"


def test_a_class_of_one_tile_stays_in_training(tmp_path: Path) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(61), ["A", "B"] * 30 + ["C"])])
    assert sets.of(VAL).sum() == 9
    assert set(sets.tiles["label"][sets.of(VAL)]) == {"A", "B"}


def test_too_few_tiles_are_not_split(tmp_path: Path) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(3), ["A", "B", "B"])])
    assert sets.names == [UNSPLIT]
    assert sets.training == UNSPLIT
    assert sets.tested == []
    assert "no split" in sets.said


def test_other_stores_are_external_sets_under_names_of_their_own(tmp_path: Path) -> None:
    paths = [clean_store(tmp_path / place, 60, seed=seed) for seed, place in enumerate(("a/train", "b/train", "c/x"))]
    sets = sets_of_stores(paths)
    assert sets.names == ["train", "val", "b/train", "x"]
    assert sets.external == ["b/train", "x"]
    for place, path in enumerate(paths):  # every row finds its tile
        store, rows = TileStore.open(path), sets.tiles[sets.tiles["store"] == place]
        assert (store.index["tile_id"].to_numpy()[rows["row"]] == rows["tile_id"]).all()


def test_a_store_beside_itself_is_refused(tmp_path: Path) -> None:
    store = clean_store(tmp_path / "store", 60)
    with pytest.raises(UsageError, match=r"holds the same tiles as .*name it once"):
        sets_of_stores([store, store])


def test_every_path_that_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)one is no tile store.*two is no tile store"):
        sets_of_stores([tmp_path / "one", tmp_path / "two"])


def test_foreign_classes_are_said_and_have_no_code(tmp_path: Path) -> None:
    first = make_store(tmp_path / "first", tissue(40), ["A", "B"] * 20)
    second = make_store(tmp_path / "second", tissue(6, seed=1), ["A", "X"] * 3)
    sets = sets_of_stores([first, second])
    assert (sets.tiles["code"] < 0).sum() == 3
    assert "second has classes that the training store has not" in sets.lacking[0]
    assert "X (3 tiles)" in sets.lacking[0]


def test_a_run_brings_its_split_and_its_external_sets(run: RunDir) -> None:
    read = read_run(run.path)
    sets = sets_of_run(read)
    assert sets.names == ["train", "val", "elsewhere"]
    assert sets.kind == "group-level split"
    assert sets.of(VAL).sum() == 15
    split = read.split.set_index("tile_id")["split"]
    inside = sets.tiles[sets.tiles["store"] == 0]
    assert (split[inside["tile_id"]].to_numpy() == inside["set"].to_numpy()).all()


def test_stores_of_a_run_that_are_gone_are_said(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "outside").rename(tmp_path / "moved")
    sets = sets_of_run(read_run(run.path))
    assert sets.names == ["train", "val"]
    assert "the external set elsewhere was not audited" in sets.lacking[0]
    (tmp_path / "store").rename(tmp_path / "gone")
    sets = sets_of_run(read_run(run.path))
    assert len(sets.tiles) == 0
    assert sets.training is None
    assert "the training store was not audited" in sets.lacking[0]


def test_a_run_maps_foreign_classes(run: RunDir) -> None:
    text = run.config_file.read_text().replace("split: group", "split: group, class_map: {LYM: STR}")
    run.config_file.write_text(text)
    sets = sets_of_run(read_run(run.path))
    assert set(sets.tiles["label"]) == {"STR", "TUM"}
    assert np.array_equal(sets.tiles["code"], sets.tiles["label"].map({"STR": 1, "TUM": 2}))


def test_the_unnormalised_twin_is_refused(tmp_path: Path) -> None:
    first = clean_store(tmp_path / "nct", 60)
    second = clean_store(tmp_path / "nct-NONORM", 60, seed=1)
    for order in ([first, second], [second, first]):
        with pytest.raises(UsageError, match="no test set for it: both are of the same slides"):
            sets_of_stores(order)


def test_an_unnormalised_set_beside_others_is_remarked(tmp_path: Path) -> None:
    sets = sets_of_stores([clean_store(tmp_path / "mine", 60), clean_store(tmp_path / "nct-NONORM", 60, seed=1)])
    assert sets.lacking == (
        "nct-NONORM is without colour normalisation, by its name: where it is of the same slides as another set here, "
        "neither is a test of the other",
    )
