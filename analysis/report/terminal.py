"""The headline in the terminal."""

from __future__ import annotations

import sys

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.report.report import Report, shown

TWO_LINES = {"balanced accuracy": "balanced\naccuracy", "macro F1": "macro\nF1", "macro AUC": "macro\nAUC"}
"""Headings that would make the table wider than 80 columns."""


def show(table: pd.DataFrame, report: Report) -> None:
    """Prints the headline table, where the page is, and on stderr what it lacks."""
    console = Console()
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
    for column in rows.columns.drop("run"):
        is_number = rows[column].dtype.kind in "if"
        heading = TWO_LINES.get(column, column)
        grid.add_column(heading, justify="right" if is_number else "left", vertical="bottom", no_wrap=column != "set")
    for row in rows.drop(columns="run").to_dict("records"):
        grid.add_row(*(escape(shown(value, str(column))) for column, value in row.items()))
    return grid
