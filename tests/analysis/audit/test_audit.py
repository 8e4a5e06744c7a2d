from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from analysis.__main__ import main
from analysis.audit.audit import audit_run, audit_stores
from analysis.audit.findings import NOTE, PROBLEM, WARNING, Audit
from analysis.audit.terminal import show
from analysis.collect import read_run
from tests.analysis.audit.made_tiles import clean_store, compressed, make_store, tissue
from tests.analysis.made_runs import CLASSES, rename_to_twin, write_model
from trainer.rundir import RunDir
from trainer.tiles.pack import PackOptions, pack
from trainer.tiles.store import write_index


def texts(audit: Audit, level: str) -> list[str]:
    return [finding.text for finding in audit.of_level(level)]


def test_in_a_clean_set_nothing_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [clean_store(tmp_path / "inside", 720, 32, groups=24), clean_store(tmp_path / "outside", 240, 32, seed=1)]
    audit = audit_stores(stores)
    assert audit.is_clean(), texts(audit, WARNING) + texts(audit, PROBLEM)
    assert {finding.topic for finding in audit.of_level(NOTE)} == {"shortcuts", "shift"}
    assert audit.duplicates.empty
    show(audit, Console())
    assert "Nothing was found that makes scores on these tiles optimistic." in capsys.readouterr().out


def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path) -> None:
    """Copies in validation, a slide on both sides, and a class that was compressed more than the others."""
    tiles, labels = list(tissue(480)), [("A", "B", "C")[k % 3] for k in range(480)]
    tiles = [compressed(tile, 30) if label == "C" else tile for tile, label in zip(tiles, labels, strict=True)]
    groups = [f"g{k // 3 % 20}" for k in range(480)]
    splits = ["val" if group in ("g0", "g1", "g2", "g3") else "train" for group in groups]
    splits[3 * 7] = "val"  # of g7
    copied = [k for k in range(480) if splits[k] == "train" and labels[k] == "A"][:20]
    tiles += [tiles[k] for k in copied]
    store = make_store(
        tmp_path / "store", tiles, [*labels, *["A"] * 20], [*groups, *["g0"] * 20], [*splits, *["val"] * 20]
    )
    audit = audit_stores([store])
    val = sum(split == "val" for split in splits) + 20
    assert texts(audit, PROBLEM) == [
        f"20 of the {val} tiles of val are in train too, pixel by pixel",
        "1 group of train (g7) has 1 tile in val too",
    ]
    of_class, alone = [text for text in texts(audit, WARNING) if "grid" in text]
    assert of_class.startswith("in store tiles of C have a stronger 8-pixel grid than those of the other classes")
    assert alone.startswith("JPEG's 8-pixel grid alone reaches a balanced accuracy of 0.6")
    grid = audit.files.set_index("class")["blockiness at the corner"]
    assert grid["C"] > 1.1 > max(grid["A"], grid["B"])


def test_every_table_has_the_columns_that_it_promises(tmp_path: Path) -> None:
    audit = audit_stores([clean_store(tmp_path / "inside", 120, 32)])
    assert [name for name, _ in audit.tables()] == [
        *("findings", "sets", "duplicates", "groups", "classes", "files", "shortcuts", "colours", "domains"),
        "perturbation",
    ]
    assert audit.sets["tiles"].sum() == 120
    assert audit.split == "group-level split"


@pytest.mark.parametrize(
    "labels",
    [["A"] * 60, ["A"] * 40 + ["B"], ["A", "B"], ["A"], ["A", "B"] * 12 + ["C"]],
    ids=lambda each: str(len(each)),
)
def test_odd_stores_are_audited(tmp_path: Path, labels: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", tissue(len(labels), 32), labels)
    assert main(["audit", str(store), "--out", str(tmp_path / "out")]) == 0
    assert str(len(labels)) in capsys.readouterr().out


def test_tiles_of_a_few_pixels_are_audited(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    audit = audit_stores([make_store(tmp_path / "store", [*tiles, tiles[0][::-1]], ["A", "B"] * 30 + ["A"])])
    assert len(audit.duplicates) == 1


def test_a_run_is_audited_with_its_model(run: RunDir) -> None:
    write_model(run, len(CLASSES))
    read = read_run(run.path)
    audit = audit_run(read, perturbed=2)
    assert audit.said == "the split of the run first"
    assert len(audit.perturbation) == 9
    assert audit.sets["set"].tolist() == ["train", "val", "elsewhere"]
    assert audit_run(read).perturbation.empty


def test_a_run_without_its_stores_is_said_to_be_so(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "gone")
    audit = audit_run(read_run(run.path))
    assert "the training store was not audited" in texts(audit, WARNING)[0]
    assert audit.sets["set"].tolist() == ["elsewhere"]
    assert audit.shortcuts.empty
    (tmp_path / "outside").rename(tmp_path / "gone too")
    audit = audit_run(read_run(run.path))
    assert len(texts(audit, WARNING)) == 2
    assert all(table.empty for name, table in audit.tables() if name != "findings")


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = tissue(120, 32)
    store = make_store(
        tmp_path / "[red]store",
        [*tiles, tiles[0][::-1]],
        ["A", "<B>"] * 60 + ["A"],
        splits=[*["train", "val"] * 60, "val"],
    )
    assert main(["audit", str(store), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "1 problem\n" in out
    assert " - 1 of the 61 tiles of val is in train too, turned or mirrored" in out
    assert "[red]store" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100
    pairs = pd.read_parquet(tmp_path / "out" / "duplicates.parquet")
    assert pairs[["path a", "path b"]].to_numpy().tolist() == [["A/0.png", "A/120.png"]]
    written = pd.read_csv(tmp_path / "out" / "findings.csv", encoding="utf-8-sig")
    assert written["level"].iloc[0] == PROBLEM
    assert {file.stem for file in (tmp_path / "out").iterdir()} >= {"classes", "shortcuts", "colours", "files"}


def test_the_unnormalised_twin_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [clean_store(tmp_path / "nct", 60, 32), clean_store(tmp_path / "nct-NONORM", 60, 32, seed=1)]
    assert main(["audit", *map(str, stores)]) == 2
    assert f"error: {stores[1]} is {stores[0]} with other colours, so it is no test set" in capsys.readouterr().err


def test_the_unnormalised_twin_of_a_run_is_no_set_of_its_audit(run: RunDir, tmp_path: Path) -> None:
    rename_to_twin(run, tmp_path)
    audit = audit_run(read_run(run.path))
    assert audit.sets["set"].tolist() == ["train", "val"]
    [problem] = texts(audit, PROBLEM)
    assert problem.startswith(f"elsewhere: {tmp_path / 'store-nonorm'} is {tmp_path / 'store'} with other colours")
    twin = clean_store(tmp_path / "further" / "store-NONORM", 60, 32)
    assert main(["audit", str(twin), "--run", str(run.path)]) == 2


def test_a_runs_moved_store_is_found_where_it_is_named(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "outside").rename(tmp_path / "moved")
    out = tmp_path / "out"
    further = clean_store(tmp_path / "further", 60, 32)
    arguments = ["audit", str(tmp_path / "moved"), str(further), "--run", str(run.path), "--perturbed", "0"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert pd.read_parquet(out / "sets.parquet")["set"].tolist() == ["train", "val", "elsewhere", "further"]


def test_a_run_without_a_checkpoint_is_audited_without_its_model(run: RunDir) -> None:
    audit = audit_run(read_run(run.path), perturbed=2)
    assert audit.perturbation.empty
    assert any(text.startswith("the model was not shown recoloured tiles: ") for text in texts(audit, WARNING))


def test_tables_are_not_written_into_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = clean_store(tmp_path / "store", 60, 32)
    assert main(["audit", str(store), "--out", str(store / "audit")]) == 2
    assert f"lies in the tile store {store}; name a folder outside of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--perturbed", "5"], ["missing"], ["--run", "missing"], ["--run", "x", "--perturbed", "-1"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def unlabelled_store(folder: Path, tiles: np.ndarray, *, some: int = 0, groups: int = 0) -> Path:
    """Packs tiles of which the first `some` alone have a class, and where `groups` are given, all have a slide."""
    source = folder.parent / f"{folder.name}-source"
    source.mkdir()
    rows = []
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(source / f"{number}.png")
        rows.append((f"{number}.png", "AB"[number // 10 % 2] if number < some else "", f"g{number % max(groups, 1)}"))
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.drop(columns=[] if groups else ["group"]).to_csv(source / "manifest.csv", index=False)
    pack(source / "manifest.csv", folder, PackOptions(labels="optional"), processes=1)
    return folder


def test_a_store_without_any_label_is_audited_for_what_needs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = tissue(80, 32)
    store = unlabelled_store(tmp_path / "store", np.stack([*tiles, tiles[0], tiles[1][::-1]]))
    audit = audit_stores([store])
    assert audit.sets[["set", "tiles", "classes"]].to_numpy().tolist() == [["unsplit", 82, 0]]
    assert audit.classes[["class", "unsplit tiles"]].to_numpy().tolist() == [["class unknown", 82]]
    assert audit.files[["class", "tiles", "format"]].to_numpy().tolist() == [["class unknown", 82, "PNG"]]
    assert audit.colours["class"].tolist() == ["class unknown", "all classes"]
    assert audit.colours["haematoxylin red"].notna().all()
    assert len(audit.duplicates) == 2
    assert audit.shortcuts.empty
    assert texts(audit, PROBLEM) == []
    assert texts(audit, WARNING)[0].startswith("unsplit has 82 tiles of unknown class")
    assert any("the class of no tile is known" in text for text in texts(audit, NOTE))
    assert not any("nan" in text for text in texts(audit, WARNING) + texts(audit, NOTE))
    assert main(["audit", str(store), "--out", str(tmp_path / "out")]) == 0
    assert "class unknown" in capsys.readouterr().out


def test_tiles_of_unknown_class_are_one_row_more_and_in_no_split(tmp_path: Path) -> None:
    """Sixty labelled tiles and forty others, of the same ten slides; one of these is a copy."""
    tiles = tissue(100, 32)
    tiles[99] = tiles[0]
    store = unlabelled_store(tmp_path / "store", tiles, some=60, groups=10)
    audit = audit_stores([store])
    counts = audit.sets.set_index("set")
    assert counts.loc["unsplit", ["tiles", "classes"]].tolist() == [40, 0]
    assert counts.loc[["train", "val"], "tiles"].sum() == 60
    assert audit.split == "group-level split"
    assert audit.classes["class"].tolist() == ["A", "B", "class unknown"]
    assert audit.classes["unsplit tiles"].tolist() == [0, 0, 40]
    assert set(audit.shortcuts["set"]) == {"val"}
    assert texts(audit, PROBLEM) == []
    assert not any("two labels" in text or "has no tile of" in text for text in texts(audit, WARNING))


def test_an_external_set_without_labels_is_audited(tmp_path: Path) -> None:
    inside = clean_store(tmp_path / "inside", 120, 32)
    outside = unlabelled_store(tmp_path / "outside", tissue(40, 32, seed=1))
    audit = audit_stores([inside, outside])
    assert set(audit.shortcuts["set"]) == {"val"}
    assert list(audit.domains["b"]) == ["val"]
    [shift] = [finding.text for finding in audit.findings if finding.topic == "shift"]
    assert shift.startswith("mean brightness of outside ")
    assert "stains turned by " in shift
    assert not any("has no tile of" in text for text in texts(audit, WARNING))


def test_a_run_with_an_unlabelled_external_set_is_audited(run: RunDir, tmp_path: Path) -> None:
    index = pd.read_parquet(tmp_path / "outside" / "index.parquet").assign(label=None)
    write_index(index, tmp_path / "outside")
    audit = audit_run(read_run(run.path))
    assert audit.sets["classes"].tolist() == [3, 3, 0]
    assert any("elsewhere has 12 tiles of unknown class" in text for text in texts(audit, WARNING))
