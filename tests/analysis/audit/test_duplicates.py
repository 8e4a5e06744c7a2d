from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis.audit import duplicates, hashes
from analysis.audit.duplicates import ALTERED, EQUAL, TURNED, Duplicates, find_duplicates
from analysis.audit.findings import NOTE, PROBLEM, WARNING
from analysis.audit.hashes import ORIENTATIONS, REACH, near_hashes, oriented_hashes
from analysis.audit.measure import measure, thumbnail
from analysis.audit.sets import sets_of_stores
from tests.analysis.audit.made_tiles import clean_store, compressed, glass, make_store, number, textures, tissue
from trainer.tiles.phash import phash

T = Image.Transpose
PILLOW = (
    None,
    T.FLIP_LEFT_RIGHT,
    T.FLIP_TOP_BOTTOM,
    T.ROTATE_180,
    T.ROTATE_90,
    T.ROTATE_270,
    T.TRANSPOSE,
    T.TRANSVERSE,
)
"""What Pillow calls our orientations."""


def turned(tile: np.ndarray, orientation: int) -> np.ndarray:
    way = PILLOW[orientation]
    return tile if way is None else np.asarray(Image.fromarray(tile).transpose(way))


def find(*stores: Path) -> Duplicates:
    sets = sets_of_stores(stores)
    return find_duplicates(sets, measure(sets))


def texts(found: Duplicates, level: str) -> list[str]:
    return [finding.text for finding in found.findings if finding.level == level]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[tuple[int, int]]]]:
    """A store of 240 tiles and 60 copies of tiles 0-59; which are validation, the copies training."""
    tiles = tissue(240)
    labels = [("A", "B", "C")[k % 3] for k in range(240)]
    copies = [
        *tiles[:20],
        *(turned(tiles[20 + k], 1 + k % 7) for k in range(20)),
        *(compressed(tiles[40 + k], 80) for k in range(20)),
    ]
    splits = ["val" if k < 80 else "train" for k in range(240)] + ["train"] * 60
    store = make_store(
        tmp_path_factory.mktemp("planted") / "store", [*tiles, *copies], labels + labels[:60], splits=splits
    )
    pairs = {
        kind: {(240 + k, k) for k in range(start, start + 20)}
        for kind, start in ((EQUAL, 0), (TURNED, 20), (ALTERED, 40))
    }
    return store, pairs


@pytest.mark.parametrize("kind", [EQUAL, TURNED, ALTERED])
def test_every_planted_copy_is_found_and_nothing_else(
    planted: tuple[Path, dict[str, set[tuple[int, int]]]], kind: str
) -> None:
    store, expected = planted
    pairs = find(store).pairs
    rows = pairs[pairs["kind"] == kind]
    assert {(number(a), number(b)) for a, b in zip(rows["path a"], rows["path b"], strict=True)} == expected[kind]
    assert len(rows) == 20
    assert (rows["set a"] == "train").all()
    assert (rows["set b"] == "val").all()


def test_the_findings_count_the_planted_copies(planted: tuple[Path, dict[str, set[tuple[int, int]]]]) -> None:
    found = find(planted[0])
    assert texts(found, PROBLEM) == [
        "20 of the 80 tiles of val are in train too, pixel by pixel",
        "20 of the 80 tiles of val are in train too, turned or mirrored",
        "20 of the 80 tiles of val are in train too, compressed, resized or recoloured",
    ]
    assert len(found.findings) == 3


def test_the_orientation_of_a_pair_lays_the_first_tile_down_like_the_second(
    planted: tuple[Path, dict[str, set[tuple[int, int]]]],
) -> None:
    pairs = find(planted[0]).pairs
    rows = pairs[pairs["kind"] == TURNED]
    tiles = tissue(240)
    by_name = {orientation.name: place for place, orientation in enumerate(ORIENTATIONS)}
    for a, b, orientation in zip(rows["path a"], rows["path b"], rows["orientation"], strict=True):
        original = number(a) - 240
        copy = turned(tiles[original], 1 + (original - 20) % 7)
        assert np.array_equal(turned(copy, by_name[orientation]), tiles[number(b)])


def test_copies_of_another_store_are_found_at_another_size_and_brightness(tmp_path: Path) -> None:
    tiles = tissue(40, size=128, seed=5)
    small = [np.asarray(Image.fromarray(tile).resize((64, 64), Image.Resampling.LANCZOS)) for tile in tiles[:6]]
    darker = [(0.8 * tile).astype(np.uint8) for tile in tiles[6:10]]
    first = make_store(tmp_path / "first", tiles, ["A", "B"] * 20)
    second = make_store(tmp_path / "second", [*small, *tissue(20, size=64, seed=6)], ["A", "B"] * 13)
    third = make_store(tmp_path / "third", darker, ["A", "B"] * 2)
    pairs = find(first, second, third).pairs
    assert set(pairs["kind"]) == {ALTERED}
    assert set(pairs["set b"]) == {"second", "third"}
    named = {
        (number(a), name, number(b)) for a, name, b in pairs[["path a", "set b", "path b"]].itertuples(index=False)
    }
    assert named == {(k, "second", k) for k in range(6)} | {(6 + k, "third", k) for k in range(4)}


def test_a_clean_store_has_no_copies(tmp_path: Path) -> None:
    found = find(clean_store(tmp_path / "clean"), clean_store(tmp_path / "other", seed=1))
    assert found.pairs.empty
    assert found.findings == []


def test_blank_tiles_are_no_copies_of_each_other(tmp_path: Path) -> None:
    tiles = [*tissue(30), *glass(30)]
    found = find(make_store(tmp_path / "store", tiles, ["T"] * 30 + ["B"] * 30))
    assert found.pairs.empty
    assert texts(found, NOTE) == [
        "30 tiles without texture (grey levels vary by less than 4) were compared for equal pixels alone"
    ]


def test_many_tiles_of_equal_pixels_are_linked_to_the_first_alone(tmp_path: Path) -> None:
    white = np.full((50, 64, 64, 3), 255, np.uint8)
    found = find(make_store(tmp_path / "store", [*white, *tissue(20)], ["B"] * 50 + ["T"] * 20))
    assert len(found.pairs) == 49
    assert found.pairs["path a"].nunique() == 1


def test_a_copy_of_a_picture_that_is_there_twice_is_a_copy_of_both(tmp_path: Path) -> None:
    tiles = tissue(30)
    splits = ["train"] * 30 + ["train", "val"]
    store = make_store(tmp_path / "store", [*tiles, tiles[0], tiles[0][::-1]], ["A"] * 32, splits=splits)
    found = find(store)
    turned_pairs = found.pairs[found.pairs["kind"] == TURNED]
    assert {number(path) for path in turned_pairs["path a"]} == {0, 30}
    assert {number(path) for path in turned_pairs["path b"]} == {31}
    assert texts(found, PROBLEM) == ["1 of the 1 tile of val is in train too, turned or mirrored"]


def test_what_is_not_compared_pixel_by_pixel_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight pictures in the same eight orientations, 8 x 28 pairs, the nearest hashes are compared."""
    tiles = [turned(tile, way) for tile in tissue(8) for way in range(8)]
    store = make_store(tmp_path / "store", tiles, ["A"] * 64)
    shown: list[tuple[str, int]] = []
    done: list[int] = []

    @contextmanager
    def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((description, total))
        yield done.append

    sets = sets_of_stores([store])
    monkeypatch.setattr(duplicates, "BLOCK", 50)
    every = find_duplicates(sets, measure(sets), track)
    assert len(every.pairs) == 224
    assert shown == [("Comparing tiles", 224)]
    assert done == [50, 50, 50, 50, 24]
    assert texts(every, WARNING) == []
    monkeypatch.setattr(duplicates, "MOST_CONFIRMED", 100)
    some = find_duplicates(sets, measure(sets))
    assert len(some.pairs) == 100
    assert texts(some, WARNING) == [
        "224 pairs of tiles have near hashes, of which the 100 nearest were compared pixel by pixel: there may be more "
        "copies than are listed"
    ]


def test_correlations_are_numpys(tmp_path: Path) -> None:
    tiles = tissue(20)
    pairs = find(make_store(tmp_path / "store", [*tiles, compressed(tiles[3], 40)], ["A"] * 21)).pairs
    one, other = (
        np.asarray(Image.fromarray(tile).convert("L"), float) for tile in (tiles[3], compressed(tiles[3], 40))
    )
    assert pairs["correlation"].to_list() == pytest.approx([np.corrcoef(one.ravel(), other.ravel())[0, 1]], abs=1e-6)


def test_copies_under_two_labels_are_told(tmp_path: Path) -> None:
    tiles = tissue(30)
    store = make_store(tmp_path / "store", [*tiles, tiles[0][:, ::-1]], ["A"] * 30 + ["B"])
    assert any("1 pair of copies bears two labels" in finding.text for finding in find(store).findings)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 64)])
def test_hashes_in_every_orientation_are_those_of_turned_images(size: tuple[int, int]) -> None:
    image = Image.fromarray(tissue(1, size=224, seed=2)[0]).resize(size)
    computed = oriented_hashes(thumbnail(image)[None])[:, 0]
    expected = [int(phash(image if way is None else image.transpose(way)), 16) for way in PILLOW]
    assert computed.tolist() == expected


def test_orientations_are_what_pillow_calls_them() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for place, orientation in enumerate(ORIENTATIONS):
        assert np.array_equal(orientation.of(picture), turned(picture, place))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_index_finds_what_comparing_all_pairs_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.integers(0, 2**64, 120, dtype=np.uint64, endpoint=False)
    for k in range(60):  # neighbours at every distance, also out of reach
        bits = rng.choice(64, k % 10, replace=False)
        own[60 + k] = own[k] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0))
    near = near_hashes(np.tile(own, (8, 1)))
    distance = np.bitwise_count(own[:, None] ^ own[None]).astype(int)
    first, second = np.nonzero(np.triu(distance <= REACH, k=1))
    assert set(zip(near.first.tolist(), near.second.tolist(), strict=True)) == set(
        zip(first.tolist(), second.tolist(), strict=True)
    )
    assert np.array_equal(near.distance, distance[near.first, near.second])
    assert not near.crowded
    assert not near.ended


def test_a_crowd_of_like_hashes_is_said_instead_of_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "CROWD", 10)
    near = near_hashes(np.zeros((8, 12), np.uint64))
    assert near.crowded == 12
    assert len(near.first) == 0


def test_textures_of_the_tests_differ_by_more_than_their_hash_allows() -> None:
    fields = (255 * textures(200, 64, 9)).astype(np.uint8)
    own = oriented_hashes(np.stack([thumbnail(Image.fromarray(field).convert("RGB")) for field in fields]))
    assert len(near_hashes(own).first) == 0
