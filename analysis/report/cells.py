"""A table's values as people read them, and as files keep them."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from analysis.scores import Interval
from analysis.table import exports

FORMATS = {
    "AUC": ".4f",
    "AP": ".4f",
    "macro AUC": ".4f",
    "train/loss": ".4f",
    "val/loss": ".4f",
    "lr": ".3g",
    "tiles_per_s": ".1f",
    "seconds": ".1f",
    "bytes": ",.0f",
}
"""How numbers of a column are written, other than with three decimals."""
ABSENT = "—"


def shown(value: object, column: str = "") -> str:
    """A value as text: a dash where there is none, thousands parted, decimals by the column."""
    if isinstance(value, Interval):
        return shown(value.value, column)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, float):
        return format(value, FORMATS.get(column, ".3f"))
    return f"{value:,}" if isinstance(value, int) else str(value)


def ends(value: object, column: str = "") -> str:
    """An interval's ends as text; nothing where it has none."""
    if not isinstance(value, Interval) or math.isnan(value.low):
        return ""
    return f"{shown(value.low, column)}{' to ' if value.low < 0 else '-'}{shown(value.high, column)}"


def order(value: object) -> str:
    """What a column is sorted by in the browser."""
    return exports.order(value.value if isinstance(value, Interval) else value)


def is_number(column: pd.Series) -> bool:
    """Whether its values stand at the right."""
    return column.dtype.kind in "iuf" or any(isinstance(value, Interval) for value in column)


def expanded(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a column of intervals as four: `name`, `name low`, `name high` (95 %), `name standard error`."""
    columns: dict[str, pd.Series] = {}
    for name, column in frame.items():
        if not any(isinstance(value, Interval) for value in column):
            columns[str(name)] = column
            continue
        columns[str(name)] = _parts(column, "value")
        for part in ("low", "high", "standard_error"):
            columns[f"{name} {part.replace('_', ' ')}"] = _parts(column, part)
    return pd.DataFrame(columns)


def _parts(column: pd.Series, part: str) -> pd.Series:
    return pd.Series([getattr(value, part, math.nan) for value in column], index=column.index, dtype="float64")


def write(frame: pd.DataFrame, file: Path) -> None:
    """Writes a table as CSV, with the mark without which Excel garbles Chinese names, and as Parquet beside it."""
    whole = expanded(frame)
    whole.map(exports.as_text).rename(columns=exports.as_text).to_csv(
        file.with_name(f"{file.name}.csv"), index=False, encoding="utf-8-sig"
    )
    whole.to_parquet(file.with_name(f"{file.name}.parquet"), index=False)
