"""The headline in the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.report.report import shown


def show(table: pd.DataFrame, page: Path) -> None:
    """Prints the headline table and where the page is."""
    console = Console()
    grid = Table("set of tiles", box=None, padding=(0, 2, 0, 0), header_style="bold")
    numbers = [column for column in table.columns if table[column].dtype.kind in "if"]
    for column in numbers:
        grid.add_column(column, justify="right", overflow="fold")
    names = ["run", "set", "split"] if table["run"].nunique() > 1 else ["set", "split"]
    for row in table.to_dict("records"):
        place = " · ".join(str(row[name]) for name in names)
        grid.add_row(escape(place), *(shown(row[column], column) for column in numbers))
    console.print(grid if len(table) else "no predictions yet: training has not finished")
    console.print(f"page: {page.absolute()}", soft_wrap=True, markup=False, highlight=False)
