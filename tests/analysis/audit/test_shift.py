from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.audit.findings import NOTE, WARNING
from analysis.audit.measure import measure
from analysis.audit.sets import Sets, sets_of_stores
from analysis.audit.shift import ALL, _area, describe_colours, judge_shift, tell_apart
from tests.analysis.audit.made_tiles import HAEMATOXYLIN, clean_store, make_store, stained, textures, tissue

OTHER = np.array([0.5, 0.75, 0.45])
"""A haematoxylin of another hue."""


def in_stain(count: int, vector: np.ndarray, seed: int) -> np.ndarray:
    """Tiles in that haematoxylin and an eosin that is the same in all."""
    amounts = textures(2 * count, 48, seed)
    vectors = np.stack([vector / np.linalg.norm(vector), np.array([0.2, 0.9, 0.35]) / np.linalg.norm([0.2, 0.9, 0.35])])
    return stained(0.9 * np.clip(amounts[:count] - 0.3, 0, 1), 0.9 * np.clip(amounts[count:] - 0.3, 0, 1), vectors)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Training tiles; external ones of the same stain, and of another; classes of another mixture."""
    folder = tmp_path_factory.mktemp("shift")
    inside = make_store(folder / "inside", in_stain(240, HAEMATOXYLIN, 0), ["A", "B"] * 120)
    same = make_store(folder / "same", in_stain(90, HAEMATOXYLIN, 1), ["A"] * 60 + ["B"] * 30)
    other = make_store(folder / "other", in_stain(90, OTHER, 2), ["A"] * 30 + ["B"] * 60)
    return sets_of_stores([inside, same, other])


def test_colour_tells_another_stain_and_not_the_same(sets: Sets) -> None:
    table = tell_apart(sets, measure(sets)).set_index("b")
    assert table.loc["other", "AUC"] > 0.95
    assert 0.35 < table.loc["same", "AUC"] < 0.65
    assert table.loc["same", "low"] < 0.5 < table.loc["same", "high"]
    assert 0.9 < table.loc["other", "low"] <= table.loc["other", "AUC"] <= table.loc["other", "high"] <= 1
    assert 0.3 < table.loc["val", "AUC"] < 0.7
    assert table["tiles"].to_dict() == {"val": 36, "same": 90, "other": 90}
    assert set(table["folds"]) == {"by tile"}


def test_the_interval_of_the_area_is_near_delongs() -> None:
    rng = np.random.default_rng(0)
    is_other = np.arange(200) % 2 == 0
    score = rng.normal(size=200) + 0.8 * is_other
    above, below = score[is_other], score[~is_other]
    wins = above[:, None] > below
    error = np.sqrt(wins.mean(axis=1).var(ddof=1) / 100 + wins.mean(axis=0).var(ddof=1) / 100)
    area = _area(is_other, score, None)
    assert area.value == pytest.approx(wins.mean())
    assert area.value - area.low == pytest.approx(1.96 * error, rel=0.15)
    assert area.high - area.value == pytest.approx(1.96 * error, rel=0.15)
    slides = np.array([f"{other}{k % 10}" for k, other in enumerate(is_other)], dtype=object)
    twice = _area(np.tile(is_other, 2), np.tile(score, 2), np.tile(np.arange(200).astype(str).astype(object), 2))
    assert twice.high - twice.low == pytest.approx(area.high - area.low, rel=0.1)  # a copy of each tells nothing more
    assert _area(is_other, score, slides).low < area.value


def test_classes_alone_do_not_tell_sets_apart(tmp_path: Path) -> None:
    """Bright tiles are A and dark ones B; the external set has other shares of them."""

    def store(name: str, a: int, b: int, seed: int) -> Path:
        tiles = tissue(a + b, 32, seed)
        return make_store(tmp_path / name, [*tiles[:a], *(tiles[a:] // 2)], ["A"] * a + ["B"] * b)

    sets = sets_of_stores([store("inside", 100, 100, 0), store("outside", 120, 30, 1)])
    table = tell_apart(sets, measure(sets)).set_index("b")
    assert table.loc["outside", "AUC"] == pytest.approx(0.5, abs=0.13)
    assert table.loc["outside", "tiles"] == 85 + 30


def test_whole_groups_are_left_out_where_all_are_known(tmp_path: Path) -> None:
    stores = [clean_store(tmp_path / "one", 240, 32), clean_store(tmp_path / "two", 120, 32, seed=1)]
    sets = sets_of_stores(stores)
    table = tell_apart(sets, measure(sets)).set_index("b")
    assert table.loc["two", "folds"] == "by group"
    assert table.loc["val", "folds"] == "by tile"  # two groups
    assert 0.3 < table.loc["two", "AUC"] < 0.7


def test_too_few_tiles_are_not_compared(tmp_path: Path) -> None:
    stores = [clean_store(tmp_path / "one", 240, 32), make_store(tmp_path / "two", tissue(6, 32, 1), ["A", "B"] * 3)]
    sets = sets_of_stores(stores)
    table = tell_apart(sets, measure(sets))
    assert "two" not in set(table["b"])


def test_colours_are_described_by_set_and_class(sets: Sets) -> None:
    measures = measure(sets)
    table = describe_colours(sets, measures).set_index(["set", "class"])
    chosen = sets.of("other") & (sets.tiles["label"] == "A").to_numpy()
    assert table.loc[("other", "A"), "tiles"] == 30
    assert table.loc[("other", "A"), ["red", "green", "blue"]].tolist() == pytest.approx(
        measures.mean[chosen].mean(axis=0).tolist(), rel=1e-5
    )
    assert table.loc[("other", "A"), "brightness"] == pytest.approx(measures.mean[chosen].mean(), rel=1e-5)
    assert table.loc[("other", ALL), "tiles"] == 60
    turned = np.degrees(np.arccos(HAEMATOXYLIN @ OTHER / np.linalg.norm(HAEMATOXYLIN) / np.linalg.norm(OTHER)))
    assert table.loc[("other", ALL), "haematoxylin degrees"] == pytest.approx(turned, abs=2)
    assert table.loc[("same", ALL), "haematoxylin degrees"] < 2
    assert table.loc[(slice(None), ALL), "eosin degrees"].iloc[1:].max() < 3
    assert np.isnan(table.loc[("train", ALL), "eosin degrees"])


def test_a_shift_is_a_warning_and_none_a_note(sets: Sets) -> None:
    measures = measure(sets)
    found = list(judge_shift(sets, describe_colours(sets, measures), tell_apart(sets, measures)))
    assert [finding.level for finding in found] == [NOTE, WARNING]
    assert found[1].text.startswith("colour alone tells other from train with an AUC of ")
    assert "(haematoxylin)" in found[1].text
