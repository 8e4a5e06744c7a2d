"""The headline in the terminal."""

from __future__ import annotations

import sys

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.report.cells import ends, is_number, shown
from analysis.report.report import Report

HIDDEN = ("run", "intervals from", "macro F1")
WITH_ENDS = "balanced accuracy"
"""The one score that has room for its interval."""
TWO_LINES = {
    WITH_ENDS: "balanced accuracy\n(95 % interval)",
    "macro AUC": "macro\nAUC",
}
"""Headings that would make the table wider than 80 columns."""


def show(report: Report) -> None:
    """Prints the headline table, where the page is, and on stderr what it lacks."""
    console, table = Console(), report.headline
    for run, rows in table.groupby("run", sort=False):
        if table["run"].nunique() > 1:
            console.print(f"[bold]{escape(str(run))}[/bold]", highlight=False)
        console.print(_grid(rows))
    console.print(f"page: {report.page.absolute()}", soft_wrap=True, markup=False, highlight=False)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _grid(rows: pd.DataFrame) -> Table:
    """The scores of one run, a line for each set of tiles."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns = [column for column in rows.columns if column not in HIDDEN]
    for column in columns:
        heading = TWO_LINES.get(column, column)
        right = is_number(rows[column]) and column != WITH_ENDS
        grid.add_column(heading, justify="right" if right else "left", vertical="bottom", no_wrap=column != "set")
    for row in rows[columns].to_dict("records"):
        grid.add_row(*(escape(_text(str(column), value)) for column, value in row.items()))
    return grid


def _text(column: str, value: object) -> str:
    both = ends(value, column) if column == WITH_ENDS else ""
    return f"{shown(value, column)} ({both})" if both else shown(value, column)
