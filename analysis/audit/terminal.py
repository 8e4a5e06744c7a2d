"""An audit in the terminal, and its tables as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from analysis.audit.duplicates import KINDS
from analysis.audit.findings import LEVELS, NOTE, PROBLEM, WARNING, Audit
from analysis.out import made
from analysis.report import cells
from trainer.progress import Advance, track
from trainer.wording import counted

WIDTH = 100
STYLES = {PROBLEM: "bold red", WARNING: "bold yellow", NOTE: "bold"}
SHOWN_PAIRS = 10
"""Copies that are shown; the files have all of them."""
FORMATS = {"brightness": ".0f", "bytes": ",.0f", "microns per pixel": "g"}
"""How numbers of a column are shown, other than with two decimals."""


def progress(description: str, total: int) -> AbstractContextManager[Advance]:
    """Shows progress on standard error: the audit itself may be piped."""
    return track(description, total, console=Console(stderr=True))


def show(audit: Audit, console: Console) -> None:
    """Prints what was found, then the tables that a reader compares numbers in. At most 100 columns wide."""
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    console.print(*_parts(audit), sep="\n", highlight=False)


def _parts(audit: Audit) -> Iterator[RenderableType]:
    if len(audit.sets):
        yield _table("Sets", _sets(audit.sets))
        yield f"\nValidation is from {escape(audit.said)}."
    for level in LEVELS:
        found = audit.of_level(level)
        if found:
            yield f"\n[{STYLES[level]}]{counted(len(found), level)}[/]"
            yield from (_hanging(finding.text) for finding in found)
        elif level == WARNING and audit.is_clean():
            yield "\n[bold]Nothing was found that makes scores on these tiles optimistic.[/]"
    if len(audit.shortcuts):
        yield _table("Balanced accuracy without morphology (95 % interval)", _scores(audit.shortcuts))
    if len(audit.perturbation):
        columns = {"perturbation": "validation tiles", "factor": "times", "changed": "another class"}
        yield _table("The model on recoloured tiles", _with_interval(audit.perturbation).rename(columns=columns))
    if len(audit.domains):
        yield _table("How well colour alone tells sets apart (0.5: not at all)", _with_interval(audit.domains, "AUC"))
    if len(audit.classes):
        groups = [name for name in audit.classes if str(name).endswith("groups") and not audit.classes[name].any()]
        yield _table("Tiles and groups by class", audit.classes.drop(columns=groups))
    if len(audit.files):
        shown = ["class", "tiles", "format", "bytes", "blockiness at the corner", "blockiness at any offset"]
        for store, rows in audit.files.groupby("store", sort=False):
            short = {"blockiness at the corner": "grid at\ncorner", "blockiness at any offset": "grid at\nany offset"}
            yield _table(
                f"Source files of {Path(str(store)).name} by class (medians)", rows[shown].rename(columns=short)
            )
    if len(audit.duplicates):
        yield _copies(audit.duplicates)


def _sets(sets: pd.DataFrame) -> pd.DataFrame:
    groups = sets["groups"].astype(str).where(sets["tiles without group"] == 0, "unknown")
    return sets.assign(groups=groups)[["set", "split", "tiles", "classes", "groups", "blank tiles", "tile size"]]


def _hanging(text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row("-", escape(text[:1].upper() + text[1:] if not text.split()[0].isupper() else text))
    return Padding(grid, (0, 0, 0, 1))


def _with_interval(table: pd.DataFrame, score: str = "balanced accuracy") -> pd.DataFrame:
    """The score and its interval in one column."""
    scores = [
        f"{value:.2f}" if pd.isna(low) else f"{value:.2f} ({low:.2f}-{high:.2f})"
        for value, low, high in zip(table[score], table["low"], table["high"], strict=True)
    ]
    return table.assign(**{score: scores}).drop(columns=["low", "high"])


def _scores(shortcuts: pd.DataFrame) -> pd.DataFrame:
    """A row a baseline, a column a set."""
    table = _with_interval(shortcuts)
    table["set"] = [
        f"{name}\n{kind}\n{tiles:,} tiles"
        for name, kind, tiles in zip(table["set"], table["split"], table["tiles"], strict=True)
    ]
    return (
        table.pivot(index="baseline", columns="set", values="balanced accuracy")[table["set"].unique()]
        .reindex(table["baseline"].unique())
        .reset_index()
    )


def _copies(duplicates: pd.DataFrame) -> RenderableType:
    kinds = {kind: number for number, kind in enumerate(KINDS)}
    apart = duplicates.assign(within=duplicates["set a"] == duplicates["set b"], rank=duplicates["kind"].map(kinds))
    first = apart.sort_values(["within", "rank"], kind="stable").head(SHOWN_PAIRS)
    rows = pd.DataFrame(
        {
            "tile": first["set a"] + ": " + first["path a"],
            "is in": first["set b"] + ": " + first["path b"],
            "how": first["orientation"].where(first["orientation"] != "as it is", first["kind"]),
            "correlation": first["correlation"],
        }
    )
    more = f", the first {SHOWN_PAIRS}" if len(duplicates) > SHOWN_PAIRS else ""
    return _table(f"{counted(len(duplicates), 'pair')} of copies{more}", rows)


def _table(title: str, rows: pd.DataFrame) -> RenderableType:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in rows.columns:
        is_number = rows[column].dtype.kind in "if" or str(rows[column].iloc[0])[:1].isdigit()
        grid.add_column(escape(str(column)), justify="right" if is_number else "left", vertical="bottom")
    for row in rows.itertuples(index=False):
        grid.add_row(*(escape(_shown(value, str(name))) for name, value in zip(rows.columns, row, strict=True)))
    return Group(f"\n[bold]{escape(title)}[/]", grid)


def _shown(value: object, column: str) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else format(value, FORMATS.get(column, ".2f"))
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(audit: Audit, out: Path) -> None:
    """Writes every table as CSV and as Parquet.

    Raises:
        UsageError: as `made`.
    """
    with made(out):
        for name, table in audit.tables():
            if len(table.columns):
                cells.write(table, out / name)
