"""A manifest: a csv or parquet table that lists tiles by path and label, and optionally group and split."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from trainer.errors import UsageError

_REQUIRED, _OPTIONAL = ("path", "label"), ("group", "split")
_SHOWN = 5


class Row(NamedTuple):
    """One line of a manifest; `path` is relative to the manifest's folder."""

    path: str
    label: str
    group: str | None
    split: str | None


def read_manifest(file: Path) -> list[Row]:
    """The rows of a manifest; one UsageError with everything that is wrong with it."""
    table = _read_table(file)
    missing = [column for column in _REQUIRED if column not in table]
    if missing:
        raise UsageError(
            f"{file} has no column {' and no column '.join(missing)}: a manifest needs path and label,"
            f" and may have group and split; found {', '.join(map(str, table.columns)) or 'nothing'}"
        )
    rows = [_row(values) for values in _texts(table)]
    problems = _problems(rows, file.parent)
    if problems:
        raise UsageError("\n".join([f"{file} cannot be packed:", *problems]))
    return rows


def _read_table(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".parquet":
            return pd.read_parquet(file)
        return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")  # a class may be named NA
    except (ValueError, OSError) as error:  # parser, encoding and parquet errors are ValueErrors or OSErrors
        raise UsageError(f"{file} cannot be read as a manifest: {error}") from None


def _texts(table: pd.DataFrame) -> list[tuple[str | None, ...]]:
    """Path, label, group and split of each row as text; None where a cell is empty."""
    columns = []
    for name in (*_REQUIRED, *_OPTIONAL):
        column = table[name] if name in table else [None] * len(table)
        columns.append([None if pd.isna(cell) or cell == "" else str(cell) for cell in column])
    return list(zip(*columns, strict=True))


def _row(values: tuple[str | None, ...]) -> Row:
    path, label, group, split = values
    return Row(str(PurePosixPath(path)) if path else "", label or "", group, split)


def _problems(rows: Sequence[Row], folder: Path) -> list[str]:
    paths = pd.Series([row.path for row in rows], dtype="str")
    outside = paths.map(lambda path: path.startswith("/") or ".." in path.split("/")).astype(bool)
    unsafe = outside | (paths == "")
    found = {
        "rows without a path": pd.Series([f"row {n}" for n in range(1, len(rows) + 1)])[paths == ""],
        "rows without a label": paths[[not row.label for row in rows]],
        "paths that are absolute or leave the manifest's folder": paths[outside],
        "paths listed more than once": paths[paths.duplicated() & ~unsafe].drop_duplicates(),
        "files that are not there": paths[~unsafe & ~paths.map(lambda path: _exists(folder / path)).astype(bool)],
    }
    problems = [f"  {len(bad):,} {what}: {_some(bad.tolist())}" for what, bad in found.items() if len(bad)]
    return problems if rows else ["  it has no rows"]


def _exists(file: Path) -> bool:
    try:
        return file.exists() or file.is_symlink()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
