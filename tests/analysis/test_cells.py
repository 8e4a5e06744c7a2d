"""Tables as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.report import cells


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "\rx", "plain", "名"]
    frame = pd.DataFrame({"path": texts, "=name": [-1.5] * len(texts)})
    cells.write(frame, tmp_path / "table")
    read = pd.read_csv(tmp_path / "table.csv", encoding="utf-8-sig", lineterminator="\n")
    assert [str(text)[0] for text in read["path"]] == ["'"] * 6 + ["p", "名"]
    assert read["'=name"].tolist() == [-1.5] * len(texts), "numbers stay numbers"
    assert pd.read_parquet(tmp_path / "table.parquet")["path"].tolist() == texts
