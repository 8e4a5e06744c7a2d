import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import DataSection
from trainer.errors import UsageError
from trainer.tiles.split import split_tiles


def make_index(groups: int, tiles_a_group: int, classes: int = 3) -> pd.DataFrame:
    rows = groups * tiles_a_group
    return pd.DataFrame(
        {
            "tile_id": [f"{i:016x}" for i in range(rows)],
            "label": [f"C{i % classes}" for i in range(rows)],
            "group": [f"slide-{i // tiles_a_group}" for i in range(rows)],
            "split": None,
        }
    )


def section(**options: object) -> DataSection:
    return DataSection(tiles="store", **options)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(st.integers(12, 30), st.integers(3, 12), st.floats(0.1, 0.4), st.floats(0.0, 0.3), st.integers(0, 5))
def test_no_group_on_two_sides(groups: int, size: int, val: float, test: float, seed: int) -> None:
    index = make_index(groups, size)
    test = 0.0 if test < 0.1 else test
    splits = split_tiles(index, section(val_fraction=val, test_fraction=test), seed)
    assert (index.assign(side=splits).groupby("group")["side"].nunique() == 1).all()
    assert set(splits) == {"train", "val", *(["test"] if test else [])}
    assert abs((splits == "val").mean() - val) <= 1.5 / groups + 0.05


@settings(max_examples=25)
@given(st.floats(0.1, 0.4), st.floats(0.1, 0.3), st.integers(0, 5))
def test_random_split_is_stratified(val: float, test: float, seed: int) -> None:
    index = make_index(30, 10)
    splits = split_tiles(index, section(split="random", val_fraction=val, test_fraction=test), seed)
    for part, fraction in (("val", val), ("test", test)):
        by_class = index[splits == part]["label"].value_counts()
        assert (abs(by_class - 100 * fraction) <= 2).all()


def test_equal_pixels_stay_together_in_a_random_split() -> None:
    index = make_index(30, 10)
    copies = index.iloc[:60].assign(tile_id=index["tile_id"].iloc[:60] + "-2")
    both = pd.concat([index, copies], ignore_index=True)
    splits = split_tiles(both, section(split="random", val_fraction=0.3), 0)
    sides = both.assign(side=splits, pixels=both["tile_id"].str.slice(0, 16)).groupby("pixels")["side"].nunique()
    assert (sides == 1).all()


def test_the_source_may_say() -> None:
    said = np.array(["train", "val", "test"] * 100)
    index = make_index(30, 10, classes=2).assign(split=said)
    assert np.array_equal(split_tiles(index, section(split="source"), 0), said)


def test_seed_decides() -> None:
    index = make_index(20, 9)
    first = split_tiles(index, section(), 0)
    assert np.array_equal(first, split_tiles(index, section(), 0))
    assert any(not np.array_equal(first, split_tiles(index, section(), seed)) for seed in (1, 2, 3))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"group": None}, {}, ["data.split: group", "split: random", "tiles of one slide"]),
        ({"group": "only"}, {}, ["1 group ", "data.val_fraction"]),
        ({"label": [f"C{i % 30}" for i in range(90)]}, {"split": "random"}, ["C0", "data.val_fraction"]),
        ({}, {"split": "source"}, ["data.split: source", "manifest"]),
        ({"label": ["rare"] + ["common"] * 89}, {"split": "random"}, ["rare (1)", "data.val_fraction"]),
        ({"label": ["rare"] + ["common"] * 89}, {}, ["no tile of rare", "groups"]),
    ],
)
def test_what_cannot_be_split_is_said(change: dict[str, object], options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        split_tiles(make_index(10, 9).assign(**change), section(**options), 0)
    assert all(word in str(error.value) for word in words)
