from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from analysis.__main__ import main
from analysis.collect import collect
from analysis.compare import SetComparison, compare
from tests.analysis.made_runs import CLASSES, skewed_logits, write_predictions
from trainer.errors import UsageError
from trainer.rundir import RunDir


@pytest.fixture
def other(run: RunDir, tmp_path: Path) -> RunDir:
    """The same run with other predictions, its tiles in another order."""
    copied = RunDir(tmp_path / "runs" / "second")
    shutil.copytree(run.path, copied.path)
    for split, seed in (("val", 5), ("elsewhere", 6)):
        index = pq.read_table(run.predictions_file(split)).to_pandas()[::-1]
        logits = skewed_logits(index["label"], CLASSES, 1.5, seed)
        write_predictions(copied.predictions_file(split), index, logits, CLASSES)
    identity = copied.identity_file.read_text().replace('"run": "first"', '"run": "second"')
    copied.identity_file.write_text(identity)
    return copied


def on(comparisons: list[SetComparison], split: str) -> SetComparison:
    return next(each for each in comparisons if each.split == split)


def said(run: RunDir, split: str) -> pd.DataFrame:
    """Each tile's label and what was predicted, by tile."""
    table = pq.read_table(run.predictions_file(split)).to_pandas().set_index("tile_id")
    table["said"] = np.array(CLASSES)[np.stack(table["logits"]).argmax(axis=1)]
    return table


def test_differences_are_of_the_same_tiles(run: RunDir, other: RunDir) -> None:
    found = on(compare(collect([run.path, other.path])), "val")
    one, two = said(run, "val"), said(other, "val")
    row = found.scores.set_index("score").loc["balanced accuracy"]
    values = [metrics.balanced_accuracy_score(each["label"], each["said"]) for each in (one, two)]
    assert (row["first"].value, row["second"].value) == pytest.approx(tuple(values))
    assert row["difference"].value == pytest.approx(values[1] - values[0])
    assert np.isnan(row["difference"].low), "one slide tells nothing of others"
    outside = on(compare(collect([run.path, other.path])), "elsewhere").scores.set_index("score")["difference"]
    assert outside["log loss"].low < outside["log loss"].value < outside["log loss"].high
    differ = one["said"] != two["said"].reindex(one.index)
    assert set(found.disagreements["tile_id"]) == set(one.index[differ])
    assert (found.kind, found.tiles, found.unit) == ("group-level split", 15, "1 group")
    assert found.discordance is None, "tiles of known slides are not independent"
    assert "DeLong p" not in found.classes


def test_tests_that_need_independent_tiles_are_made_where_no_slides_are_known(
    run: RunDir, other: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in (run, other):
        index = pq.read_table(each.predictions_file("elsewhere")).to_pandas().assign(group=None)
        write_predictions(each.predictions_file("elsewhere"), index, np.stack(index["logits"]), CLASSES)
    found = on(compare(collect([run.path, other.path])), "elsewhere")
    one, two = said(run, "elsewhere"), said(other, "elsewhere")
    right = [each["said"] == each["label"] for each in (one, two.reindex(one.index))]
    assert found.discordance is not None
    assert found.discordance.only_first == int((right[0] & ~right[1]).sum())
    assert np.isnan(found.classes.set_index(["class", "score"]).loc[("TUM", "AUC"), "DeLong p"]), (
        "four tiles are too few"
    )
    assert main(["compare", str(run.path), str(other.path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "McNemar's exact p =" in printed
    assert "AUC by class, DeLong's p, if tiles are independent" in printed
    assert "TUM —" in printed
    written = pd.read_csv(tmp_path / "out" / "elsewhere-tests.csv", encoding="utf-8-sig")
    assert written["only_first"].tolist() == [found.discordance.only_first]


def test_files_of_predictions_are_compared_by_their_tiles(run: RunDir, other: RunDir, tmp_path: Path) -> None:
    shutil.copy(other.predictions_file("elsewhere"), tmp_path / "theirs.parquet")
    [found] = compare(collect([run.path, tmp_path / "theirs.parquet"]))
    assert found.split == "elsewhere"


def test_the_command_shows_and_writes_them(
    run: RunDir, other: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(run.path), str(other.path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "elsewhere · external set · 12 tiles · intervals from 4 groups" in printed
    assert max(len(line) for line in printed.splitlines() if "balanced accuracy" in line) <= 80
    written = pd.read_csv(tmp_path / "out" / "elsewhere-scores.csv", encoding="utf-8-sig")
    assert {"difference", "difference low", "difference high"} <= set(written.columns)
    tiles = pd.read_parquet(tmp_path / "out" / "elsewhere-disagreements.parquet")
    assert f"{len(tiles)} tile" in printed


def test_models_without_a_set_in_common_are_refused_with_what_they_have(run: RunDir, tmp_path: Path) -> None:
    index = pq.read_table(run.predictions_file("val")).to_pandas()[:5]
    write_predictions(tmp_path / "few.parquet", index, np.stack(index["logits"]), CLASSES)
    with pytest.raises(UsageError, match=r"(?s)no set of the same tiles.*val \(15 tiles\).*few \(5 tiles\)"):
        compare(collect([run.path, tmp_path / "few.parquet"]))
