"""A manifest: a csv or parquet table that lists tiles by path and label, and optionally group and split."""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

import pandas as pd
import pyarrow.parquet as pq
from pandas.api.types import is_scalar
from pyarrow import ArrowException

from trainer.errors import UsageError
from trainer.tiles.split import SPLITS
from trainer.wording import counted, joined

_REQUIRED, _OPTIONAL = ("path", "label"), ("group", "split")


class Row(NamedTuple):
    """One line of a manifest; `path` is relative to the manifest's folder, and an unknown label is empty."""

    path: str
    label: str
    group: str | None
    split: str | None


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest, and the names of the columns that nothing is done with."""

    rows: list[Row]
    ignored: tuple[str, ...]


def read_manifest(file: Path, *, labelled: bool = True) -> Manifest:
    """Read a manifest, in which every tile must have a label if they are `labelled`.

    Raises:
        UsageError: with everything that is wrong with it.
    """
    table = _read_table(file)
    missing = [column for column in _REQUIRED if column not in table and (labelled or column != "label")]
    if missing:
        raise UsageError(
            f"{file} has no column {' and no column '.join(missing)}: a manifest needs path"
            f"{' and label, and may have group' if labelled else ', and may have label, group'} and split; found"
            f" {joined(map(str, table.columns))}"
        )
    if several := [name for name in table.columns[table.columns.duplicated()] if name in (*_REQUIRED, *_OPTIONAL)]:
        raise UsageError(f"{file} has a column {several[0]} more than once: keep one")
    rows = [_row(values) for values in _texts(table, file)]
    problems = _problems(rows, file.parent, labelled)
    if problems:
        raise UsageError("\n".join([f"{file} cannot be packed:", *problems]))
    return Manifest(rows, tuple(str(name) for name in table.columns if name not in (*_REQUIRED, *_OPTIONAL)))


def _read_table(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() == ".parquet":
            table = pq.read_table(file)
            table.validate(full=True)  # its text need not be UTF-8
            return cast("pd.DataFrame", table.to_pandas(ignore_metadata=True))  # nor what it notes for pandas sound
        return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")  # a class may be named NA
    except (ValueError, OSError, ArrowException) as error:  # a parser's and an encoding's errors are ValueErrors
        raise UsageError(f"{file} cannot be read as a manifest: {error}") from None


def _texts(table: pd.DataFrame, file: Path) -> list[tuple[str | None, ...]]:
    """Path, label, group and split of each row as text; None where a cell is empty."""
    columns = []
    for name in (*_REQUIRED, *_OPTIONAL):
        column = table[name] if name in table else [None] * len(table)
        if not all(map(is_scalar, column)):
            raise UsageError(f"{file}: column {name} holds lists, where it must hold text")
        columns.append([None if pd.isna(cell) or cell == "" else str(cell) for cell in column])
    return list(zip(*columns, strict=True))


def _row(values: tuple[str | None, ...]) -> Row:
    path, label, group, split = values
    return Row(str(PurePosixPath(path)) if path else "", label or "", group, split)


def _problems(rows: Sequence[Row], folder: Path, labelled: bool) -> list[str]:
    if not rows:
        return ["  it has no rows"]
    paths = [row.path for row in rows]
    absolute = [path for path in paths if path.startswith("/")]
    leaving = [path for path in paths if ".." in path.split("/") and not path.startswith("/")]
    unsafe = {"", *absolute, *leaving}
    times = Counter(path for path in paths if path not in unsafe)
    splits = {row.split for row in rows if row.split and row.split not in SPLITS}
    found = [
        ("row", "without a path", [f"row {n}" for n, path in enumerate(paths, 1) if not path]),
        ("row", "without a label", [row.path for row in rows if labelled and not row.label]),
        ("path", f"absolute, where they must be relative to {folder}, the manifest's folder", absolute),
        ("path", "leading out of the manifest's folder: put the manifest above all tiles", leaving),
        ("path", "listed more than once", [path for path, count in times.items() if count > 1]),
        ("file", "not there", [path for path in times if not _exists(folder / path)]),
        ("split", f"other than {joined(SPLITS)}", [_with_nearest(split) for split in sorted(splits)]),
    ]
    return [f"  {counted(len(bad), noun)} {what}: {joined(bad)}" for noun, what, bad in found if bad]


def _with_nearest(split: str) -> str:
    near = difflib.get_close_matches(split.lower(), SPLITS, n=1, cutoff=0.5)
    return f"{split} (did you mean {near[0]}?)" if near else split


def _exists(file: Path) -> bool:
    try:
        return file.exists() or file.is_symlink()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False
