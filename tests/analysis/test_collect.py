import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.collect import collect, read_run
from tests.analysis.made_runs import CLASSES, write_predictions, write_run, write_store
from trainer.errors import UsageError
from trainer.rundir import RunDir


def test_a_run_is_read(run: RunDir) -> None:
    [read] = collect([run.path])
    assert (read.name, read.classes, len(read.attempts), read.kind) == ("first", CLASSES, 1, "group-level split")
    assert [each.split for each in read.predictions] == ["val", "elsewhere"]
    assert [each.kind for each in read.predictions] == ["group-level split", "external set"]
    val = read.predictions[0]
    stored = pq.read_table(run.predictions_file("val")).to_pandas()
    assert [CLASSES[label] for label in val.labels] == stored["label"].tolist()
    np.testing.assert_array_equal(val.predicted, [np.argmax(row) for row in stored["logits"]])
    assert val.left_out == {}
    assert read.history["epoch"].tolist() == [1, 2, 3]


def test_the_order_of_logits_in_the_file_does_not_matter(run: RunDir) -> None:
    before = read_run(run.path).predictions[0]
    stored = pq.read_table(run.predictions_file("val")).to_pandas()
    permuted = np.stack(stored["logits"])[:, [2, 0, 1]]
    write_predictions(run.predictions_file("val"), stored, permuted, [CLASSES[index] for index in (2, 0, 1)])
    after = read_run(run.path).predictions[0]
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)


def test_tiles_of_unknown_class_are_left_out_and_counted(run: RunDir) -> None:
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    stored.loc[:1, "label"] = None
    stored.loc[2, "label"] = "UNK"
    write_predictions(run.predictions_file("elsewhere"), stored, np.stack(stored["logits"]), CLASSES)
    outside = read_run(run.path).predictions[1]
    assert len(outside.labels) == len(outside.table) == len(outside.probabilities) == 9
    assert outside.left_out == {"class unknown": 2, "UNK": 1}


def test_a_run_in_training_has_no_predictions(run: RunDir) -> None:
    run.predictions_file("val").unlink()
    run.predictions_file("elsewhere").unlink()
    run.metrics_file.unlink()
    read = read_run(run.path)
    assert read.predictions == ()
    assert read.history.empty
    assert read.best is None


def test_runs_of_different_classes_are_refused_with_both_lists(run: RunDir, tmp_path: Path) -> None:
    other = write_run(tmp_path / "runs" / "second", tmp_path / "store", ["train"] * 60, classes=("LYM", "STRO", "TUM"))
    with pytest.raises(UsageError, match=r"(?s)LYM, STR, TUM.*LYM, STRO, TUM"):
        collect([run.path, other.path])


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..", ".hidden", ""])
def test_an_external_set_whose_name_would_leave_the_folder_is_refused(run: RunDir, name: str) -> None:
    identity = json.loads(run.identity_file.read_text())
    identity["data"]["external"] = {name: identity["data"]["external"]["elsewhere"]}
    run.identity_file.write_text(json.dumps(identity))
    with pytest.raises(UsageError, match="cannot be the name of an external set"):
        collect([run.path])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.null()])
def test_a_file_without_tiles_is_refused(run: RunDir, tmp_path: Path, kind: pa.DataType) -> None:
    table = pq.read_table(run.predictions_file("val"))[:0]
    place = table.column_names.index("logits")
    empty = table.set_column(place, "logits", pa.array([], kind)).replace_schema_metadata(table.schema.metadata)
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(UsageError, match=r"empty.parquet: holds no tiles"):
        collect([tmp_path / "empty.parquet"])


@pytest.mark.parametrize("classes", ["not json", "3", '"AB"', '["A", "A"]', '["A", 1]', "{}"])
def test_a_foreign_file_with_broken_class_names_is_refused(run: RunDir, tmp_path: Path, classes: str) -> None:
    table = pq.read_table(run.predictions_file("val")).replace_schema_metadata({"classes": classes})
    pq.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(UsageError, match=r"foreign.parquet: `classes` in its schema metadata is no JSON list"):
        collect([tmp_path / "foreign.parquet"])


def test_a_run_given_twice_is_refused(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(UsageError, match=f"{run.path} and {tmp_path / 'link'}: the same run; name it once"):
        collect([run.path, tmp_path / "link"])


def test_runs_of_one_name_are_told_apart(run: RunDir, tmp_path: Path) -> None:
    for copy in ("other/runs/first", "runs/kept"):
        shutil.copytree(run.path, tmp_path / copy)
    second = write_run(tmp_path / "runs" / "second", tmp_path / "store", ["train"] * 60)
    paths = [run.path, tmp_path / "other" / "runs" / "first", tmp_path / "runs" / "kept", second.path]
    assert [each.name for each in collect(paths)] == ["runs/first", "other/runs/first", "runs/kept", "second"]
    assert [each.name for each in collect([paths[0], paths[2]])] == ["first", "kept"]


def test_a_moved_store_is_known_by_its_fingerprint(run: RunDir, tmp_path: Path) -> None:
    tiles = read_run(run.path).open_store("val").tiles[:]
    place = (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no longer there"):
        read_run(run.path).open_store("val")
    [read] = collect([run.path], [place])
    np.testing.assert_array_equal(read.open_store("val").tiles, tiles)
    assert read.open_store("elsewhere").path == tmp_path / "outside"


def test_stores_that_no_run_knows_are_refused(run: RunDir, tmp_path: Path) -> None:
    write_store(tmp_path / "strange", ["TUM"] * 4, np.zeros((4, 48, 48, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match=f"{tmp_path / 'strange'}: no run of this page knows these tiles"):
        collect([run.path], [tmp_path / "strange"])
    with pytest.raises(UsageError, match=f"{tmp_path / 'nowhere'} is no tile store"):
        collect([run.path], [tmp_path / "nowhere"])


def test_every_wrong_path_is_named_at_once(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        collect([run.path, tmp_path / "nowhere", tmp_path / "runs"])
    message = str(caught.value)
    assert f"{tmp_path / 'nowhere'}: there is no such directory" in message
    assert f"it holds runs: name one of {run.path}" in message


def test_damaged_files_are_refused_by_name(run: RunDir) -> None:
    for file in (run.predictions_file("val"), run.split_file, run.identity_file):
        file.write_bytes(b"PAR1 this is not what it says")
        with pytest.raises(UsageError, match=re.escape(str(file))):
            collect([run.path])


def rewritten(run: RunDir, change: str) -> None:
    file = run.predictions_file("val")
    table = pq.read_table(file)
    index = table.to_pandas()
    logits = np.stack(index["logits"])
    if change == "column":
        pq.write_table(table.drop_columns(["group"]), file)
    elif change == "metadata":
        pq.write_table(table.replace_schema_metadata(None), file)
    elif change == "classes":
        write_predictions(file, index, logits, ["LYM", "STR", "UNK"])
    elif change == "twice":
        write_predictions(file, pd.concat([index, index[:2]]), np.concatenate([logits, logits[:2]]), CLASSES)
    elif change == "nan":
        logits[3, 1] = np.nan
        write_predictions(file, index, logits, CLASSES)
    elif change == "length":
        short = [row[:2] if number == 0 else row for number, row in enumerate(logits.tolist())]
        place = table.column_names.index("logits")
        pq.write_table(table.set_column(place, "logits", pa.array(short, pa.list_(pa.float32()))), file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("column", "lacks the columns group"),
        ("metadata", "no `classes`"),
        ("classes", r"(?s)LYM, STR, UNK.*LYM, STR, TUM"),
        ("twice", "2 tiles are there more than once"),
        ("nan", "1 of 15 tiles have logits that are NaN or infinite"),
        ("length", "3 logits"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(run: RunDir, change: str, message: str) -> None:
    rewritten(run, change)
    with pytest.raises(UsageError, match=message) as caught:
        collect([run.path])
    assert str(run.predictions_file("val")) in str(caught.value)


def test_an_identity_without_its_keys_is_refused(run: RunDir) -> None:
    run.identity_file.write_text(json.dumps({"run": "first", "data": {"tiles": {}}}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"lacks classes, data.external, data.split"):
        collect([run.path])
