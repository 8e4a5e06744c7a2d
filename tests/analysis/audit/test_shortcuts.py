from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from analysis.audit.files import judge_files
from analysis.audit.findings import NOTE, WARNING
from analysis.audit.measure import measure
from analysis.audit.sets import Sets, sets_of_stores
from analysis.audit.shortcuts import judge_shortcuts, score_shortcuts
from tests.analysis.audit.made_tiles import clean_store, compressed, make_store, tissue


def scored(sets: Sets) -> pd.DataFrame:
    return score_shortcuts(sets, measure(sets))


def coloured(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Tiles of three classes that differ a little in redness."""
    labels = [("A", "B", "C")[k % 3] for k in range(count)]
    change = {"A": (1.0, 1, 1), "B": (0.985, 1, 1), "C": (1.0, 1, 0.985)}
    tiles = tissue(count, 32, seed)
    return [(tile * change[label]).astype(np.uint8) for tile, label in zip(tiles, labels, strict=True)], labels


def files(sets: Sets, name: str) -> list[Path]:
    """The source files of a set, in order."""
    rows = sets.tiles[sets.of(name)]
    source = Path(f"{sets.stores[rows['store'].iloc[0]].path}-source")
    return [source / path for path in rows["path"]]


def read(file: Path, baseline: str) -> np.ndarray:
    """A baseline's features from a source file, computed anew."""
    tile = np.asarray(Image.open(file)).astype(float)
    if baseline == "mean colour":
        return tile.mean(axis=(0, 1))
    if baseline == "file size":
        return np.log([file.stat().st_size])
    shares = [np.histogram(tile[..., channel], bins=np.arange(0, 257, 16))[0] for channel in range(3)]
    return np.sqrt(np.concatenate(shares) / tile[..., 0].size)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    folder = tmp_path_factory.mktemp("coloured")
    tiles, labels = coloured(240, 0)
    inside = make_store(folder / "inside", tiles, labels, [f"g{k // 3 % 20}" for k in range(240)])
    tiles, labels = coloured(60, 1)
    return sets_of_stores([inside, make_store(folder / "outside", tiles, labels)])


@pytest.mark.parametrize("baseline", ["mean colour", "colour histogram", "colour histogram, kernel", "file size"])
def test_scores_are_those_that_scikit_learn_gives_from_the_files(sets: Sets, baseline: str) -> None:
    table = scored(sets).set_index(["baseline", "set"])
    seen = {name: np.stack([read(file, baseline) for file in files(sets, name)]) for name in sets.names}
    labels = {name: sets.tiles["label"][sets.of(name)] for name in sets.names}
    scaler = StandardScaler().fit(seen["train"])
    strength, change = 1.0, None
    if baseline.endswith("kernel"):
        change = Nystroem(kernel="rbf", gamma=1 / 48, n_components=min(300, len(seen["train"])), random_state=0)
        change.fit(scaler.transform(seen["train"]))
        strength = 100.0

    def ready(name: str) -> np.ndarray:
        scaled = scaler.transform(seen[name])
        return scaled if change is None else change.transform(scaled)

    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(ready("train"), labels["train"])
    for name in ("val", "outside"):
        expected = balanced_accuracy_score(labels[name], model.predict(ready(name)))
        assert table.loc[(baseline, name), "balanced accuracy"] == pytest.approx(expected, abs=0.021)
        assert table.loc[(baseline, name), "tiles"] == len(labels[name])
        assert 1 / 3 < expected < 1 or baseline == "file size"
        assert table.loc[(baseline, name), "low"] < expected < table.loc[(baseline, name), "high"]


def test_the_majority_reaches_chance(sets: Sets) -> None:
    table = scored(sets)
    majority = table[table["baseline"] == "majority"]
    assert majority["balanced accuracy"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert table["chance"].unique() == pytest.approx([1 / 3])


def test_every_number_says_its_split(sets: Sets) -> None:
    table = scored(sets)
    assert set(map(tuple, table[["set", "split"]].to_numpy())) == {
        ("val", "group-level split"),
        ("outside", "external set"),
    }
    found = list(judge_shortcuts(sets, table))
    assert [finding.topic for finding in found] == ["shortcuts"] * 3
    tiles = int(sets.of("val").sum())
    assert found[0].text.startswith("colour alone (a histogram) reaches a balanced accuracy of ")
    assert f", group-level split, {tiles} tiles) and " in found[0].text
    assert found[0].text.endswith(", external set, 60 tiles); chance is 0.33")
    assert f"on val (group-level split, {tiles} tiles) and " in found[1].text


def test_colour_alone_is_the_better_regression_of_each_set(sets: Sets) -> None:
    table = scored(sets).set_index(["baseline", "set"])
    for name, linear, kernel in (("val", 0.5, 0.8), ("outside", 0.7, 0.6)):
        table.loc[("colour histogram", name), "balanced accuracy"] = linear
        table.loc[("colour histogram, kernel", name), "balanced accuracy"] = kernel
    text = next(judge_shortcuts(sets, table.reset_index())).text
    assert "accuracy of 0.80 on val (kernel, group-level split, " in text
    assert " and 0.70 on outside (linear, external set, 60 tiles)" in text


def test_a_class_that_differs_by_jpeg_quality_alone_is_told(tmp_path: Path) -> None:
    labels = ["A", "B"] * 120
    tiles = [compressed(tile, 90 if label == "A" else 40) for tile, label in zip(tissue(240), labels, strict=True)]
    sets = sets_of_stores([make_store(tmp_path / "store", tiles, labels, [f"g{k // 2 % 12}" for k in range(240)])])
    table = scored(sets).set_index("baseline")
    assert table.loc["blockiness", "balanced accuracy"] > 0.8
    assert table.loc["mean colour", "balanced accuracy"] < 0.75
    levels = {
        finding.text.partition(" reaches")[0]: finding.level for finding in judge_shortcuts(sets, table.reset_index())
    }
    assert levels["JPEG's 8-pixel grid alone"] == WARNING


def test_one_class_of_nine_that_was_compressed_harder_is_named(tmp_path: Path) -> None:
    """Of nine classes one is told by its grid alone, so that a regression over all of them is near chance."""
    labels = [f"C{place % 9}" for place in range(270)]
    tiles = [compressed(tile, 30 if label == "C8" else 90) for tile, label in zip(tissue(270), labels, strict=True)]
    sets = sets_of_stores([make_store(tmp_path / "store", tiles, labels)])
    found = [finding for finding in judge_files(sets, measure(sets)) if "8-pixel grid" in finding.text]
    assert [finding.level for finding in found] == [WARNING]
    assert "in store tiles of C8 have a stronger 8-pixel grid than those of the other classes" in found[0].text


def test_where_nothing_tells_the_class_there_are_notes_alone(tmp_path: Path) -> None:
    sets = sets_of_stores([clean_store(tmp_path / "store", 480, 32)])
    table = scored(sets)
    assert (table["low by tile"] < 0.4).all()
    assert {finding.level for finding in judge_shortcuts(sets, table)} == {NOTE}


@pytest.mark.parametrize("labels", [["A"] * 100, ["A", "B", "B"]])
def test_without_two_classes_or_a_split_there_are_no_baselines(tmp_path: Path, labels: list[str]) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", tissue(len(labels), 32), labels)])
    table = scored(sets)
    assert table.empty
    [finding] = judge_shortcuts(sets, table)
    assert finding.level == NOTE
    assert finding.text.startswith("there are no shortcut baselines: ")


def test_tiles_of_foreign_classes_are_left_out(tmp_path: Path) -> None:
    tiles, labels = coloured(120, 0)
    first = make_store(tmp_path / "first", tiles, labels)
    second = make_store(tmp_path / "second", tiles[:6], ["A", "X"] * 3)
    table = scored(sets_of_stores([first, second]))
    assert (table.loc[table["set"] == "second", "tiles"] == 3).all()
    assert (table.loc[table["set"] == "second", "classes"] == 1).all()
