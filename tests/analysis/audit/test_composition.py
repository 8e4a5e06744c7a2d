"""Groups, classes and files: counts by hand, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.audit.classes import count_classes, judge_classes
from analysis.audit.files import describe_files, judge_files
from analysis.audit.findings import NOTE, PROBLEM, WARNING
from analysis.audit.groups import count_groups, judge_groups
from analysis.audit.measure import measure
from analysis.audit.sets import Sets, sets_of_stores
from tests.analysis.audit.made_tiles import clean_store, make_store, tissue
from trainer.tiles.pack import pack


def group_findings(sets: Sets) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in judge_groups(sets, count_groups(sets))]


def class_findings(sets: Sets) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in judge_classes(sets, count_classes(sets))]


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Six groups of ten tiles; g1 is training but for two tiles, g4 and g5 are validation."""
    groups = [f"g{k // 10}" for k in range(60)]
    splits = ["val" if group in ("g4", "g5") else "train" for group in groups]
    splits[10] = splits[11] = "val"
    store = tmp_path_factory.mktemp("leaking") / "store"
    return sets_of_stores([make_store(store, tissue(60, size=32), ["A", "B"] * 30, groups, splits)])


def test_a_group_on_both_sides_is_a_problem(leaking: Sets) -> None:
    assert group_findings(leaking) == [(PROBLEM, "1 group of train (g1) has 2 tiles in val too")]


def test_groups_are_counted_by_set(leaking: Sets) -> None:
    table = count_groups(leaking).set_index(["group", "set"])
    assert table.loc[("g1", "train"), "tiles"] == 8
    assert table.loc[("g1", "val"), "tiles"] == 2
    assert table["tiles"].sum() == 60
    assert len(table) == 7


def test_a_group_name_in_two_stores_is_a_question(tmp_path: Path) -> None:
    first = make_store(tmp_path / "first", tissue(40, 32), ["A", "B"] * 20, [f"g{k // 2 % 8}" for k in range(40)])
    second = make_store(tmp_path / "second", tissue(4, 32, 1), ["A", "B"] * 2, ["g3", "g3", "other", "other"])
    assert group_findings(sets_of_stores([first, second])) == [
        (WARNING, "1 group of second has the name of one in the training store (g3): is it the same slide or patient?")
    ]


def test_unknown_groups_are_said(tmp_path: Path) -> None:
    [(level, text)] = group_findings(sets_of_stores([make_store(tmp_path / "store", tissue(40, 32), ["A", "B"] * 20)]))
    assert level == WARNING
    assert text.startswith("slide or patient are unknown of tiles in train and val")


def test_a_class_of_one_slide_is_a_warning(tmp_path: Path) -> None:
    labels = ["A"] * 30 + ["B"] * 10
    groups = [f"g{k % 3}" for k in range(30)] + ["g9"] * 10
    store = make_store(tmp_path / "store", tissue(40, 32), labels, groups, (["train"] * 9 + ["val"]) * 4)
    warnings = [text for level, text in group_findings(sets_of_stores([store])) if level == WARNING]
    assert warnings == ["all tiles of B in train are of one group (g9): what is learned may be that slide"]


def test_classes_are_counted_by_set(leaking: Sets) -> None:
    table = count_classes(leaking).set_index("class")
    assert table["train tiles"].to_dict() == {"A": 19, "B": 19}
    assert table["val tiles"].to_dict() == {"A": 11, "B": 11}
    assert table.loc["A", "val groups"] == 3


def test_missing_and_few_and_unequal_classes(tmp_path: Path) -> None:
    labels = ["A"] * 240 + ["B"] * 24 + ["C"] * 25
    splits = ["train"] * 220 + ["val"] * 20 + ["train"] * 22 + ["val"] * 2 + ["train"] * 25
    found = class_findings(sets_of_stores([make_store(tmp_path / "store", tissue(289, 32), labels, splits=splits)]))
    assert found == [
        (NOTE, "train has 10 times as many tiles of A as of B: read the balanced accuracy, not the accuracy"),
        (WARNING, "val has no tile of C: nothing is known of it there"),
        (NOTE, "val has fewer than 20 tiles of B (2): their scores say little"),
        (NOTE, "val has 10 times as many tiles of A as of B: read the balanced accuracy, not the accuracy"),
    ]


def test_one_class_cannot_be_told_from_anything(tmp_path: Path) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(200, 32), ["A"] * 200)])
    assert class_findings(sets) == [(WARNING, "there is one class alone: nothing can be told apart")]


def test_file_properties_that_go_with_the_class_are_told(tmp_path: Path) -> None:
    for k, tile in enumerate(tissue(60, 32)):
        label, image = "AB"[k % 2], Image.fromarray(tile)
        path = tmp_path / "source" / label / f"{k}.{'tif' if label == 'A' else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"compression": "packbits"} if label == "A" else {"quality": 90}))
    pack(tmp_path / "source", tmp_path / "store", processes=1)
    sets = sets_of_stores([tmp_path / "store"])
    found = list(judge_files(sets, measure(sets)))
    assert [finding.level for finding in found] == [WARNING, WARNING]
    assert [finding.text for finding in found] == [
        "in store the file format differs by class (Cramér's V 1.00): A TIFF and B JPEG",
        "in store the compression differs by class (Cramér's V 1.00): A packbits and B not said",
    ]
    table = describe_files(sets, measure(sets)).set_index("class")
    assert table["format"].to_dict() == {"A": "TIFF", "B": "JPEG"}
    assert table["size"].to_dict() == {"A": "32 x 32", "B": "32 x 32"}
    sizes = [file.stat().st_size for file in (tmp_path / "source" / "A").iterdir()]
    assert table.loc["A", "bytes"] == np.median(sizes)


def test_a_property_that_does_not_go_with_the_class_is_not(tmp_path: Path) -> None:
    for k, tile in enumerate(tissue(60, 32)):
        path = tmp_path / "source" / "AB"[k % 2] / f"{k}.{'png' if k % 4 < 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    pack(tmp_path / "source", tmp_path / "store", processes=1)
    sets = sets_of_stores([tmp_path / "store"])
    assert list(judge_files(sets, measure(sets))) == []


def test_a_clean_store_has_no_finding_of_groups_classes_or_files(tmp_path: Path) -> None:
    sets = sets_of_stores([clean_store(tmp_path / "store", 600, 32)])
    assert [*group_findings(sets), *class_findings(sets), *judge_files(sets, measure(sets))] == []
