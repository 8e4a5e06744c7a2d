import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.collect import read_predictions
from analysis.outcomes import read_outcomes
from tests.analysis.made_runs import CLASSES, write_predictions
from tests.analysis.made_searches import index
from trainer.errors import UsageError

LABELS = st.sampled_from([*CLASSES, "UNK", None])
GROUPS = st.sampled_from(["a", "b", "c", None])


@given(tiles=st.lists(st.tuples(LABELS, GROUPS), max_size=40), seed=st.integers(0, 9))
def test_outcomes_are_those_of_the_slow_reader(
    tiles: list[tuple[str | None, str | None]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("outcomes") / "val.parquet"
    columns = {
        name: pd.Series([tile[place] for tile in tiles], dtype=object) for place, name in enumerate(("label", "group"))
    }
    frame = pd.DataFrame({"tile_id": [str(number) for number in range(len(tiles))], **columns})
    frame["path"] = frame["tile_id"]
    logits = np.random.default_rng(seed).normal(size=(len(tiles), 3))
    write_predictions(file, frame, logits, CLASSES)
    slow, quick = read_predictions(file, "val", "kind", CLASSES), read_outcomes(file)
    np.testing.assert_array_equal(quick.labels, slow.labels)
    np.testing.assert_array_equal(quick.predicted, slow.predicted)
    known = [group for label, group in tiles if label in CLASSES]
    if any(group is None for _, group in tiles):
        assert quick.groups is None
    else:
        assert quick.groups is not None
        pairs = set(zip(known, quick.groups.tolist(), strict=True))
        assert len(pairs) == len({group for group, _ in pairs}) == len({code for _, code in pairs})


def test_a_file_of_several_row_groups_is_read_whole(tmp_path: Path) -> None:
    write_predictions(tmp_path / "whole.parquet", index(), np.eye(3)[np.arange(60) % 3], CLASSES)
    pq.write_table(pq.read_table(tmp_path / "whole.parquet"), tmp_path / "parts.parquet", row_group_size=7)
    whole, parts = read_outcomes(tmp_path / "whole.parquet"), read_outcomes(tmp_path / "parts.parquet")
    np.testing.assert_array_equal(whole.labels, parts.labels)
    assert (parts.predicted == parts.labels).all()
    assert parts.groups is not None
    assert len(np.unique(parts.groups)) == 6


def spoilt(file: Path, how: str) -> None:
    write_predictions(file, index(), np.eye(3)[np.arange(60) % 3], CLASSES)
    table = pq.read_table(file)
    if how == "bytes":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "metadata":
        pq.write_table(table.replace_schema_metadata(None), file)
    elif how == "column":
        pq.write_table(table.drop_columns(["label"]), file)
    elif how == "nan":
        write_predictions(file, index(), np.full((60, 3), np.nan), CLASSES)
    elif how == "length":
        place = table.column_names.index("logits")
        short = pa.array([[1.0, 2.0]] * 60, pa.list_(pa.float32()))
        pq.write_table(table.set_column(place, "logits", short), file)


@pytest.mark.parametrize("how", ["bytes", "metadata", "column", "nan", "length"])
def test_what_cannot_be_scored_is_refused_by_name(how: str, tmp_path: Path) -> None:
    spoilt(tmp_path / "val.parquet", how)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "val.parquet"))):
        read_outcomes(tmp_path / "val.parquet")
