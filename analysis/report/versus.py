"""A comparison of two models in the terminal, and as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.compare import SetComparison
from analysis.comparison import LEAST
from analysis.out import made
from analysis.report import cells
from analysis.scores import Interval
from trainer.wording import counted

LISTED = 10
"""Tiles that are named in the terminal."""


def show(comparisons: Sequence[SetComparison], names: tuple[str, str]) -> None:
    """Prints the differences on each set, what tests say of them, and the tiles that are told most differently."""
    console = Console()
    for each in comparisons:
        heading = f"{each.split} · {each.kind} · {each.tiles:,} tiles · intervals from {each.unit}"
        console.print(f"[bold]{escape(heading)}[/bold]", highlight=False)
        console.print(_scores(each, names))
        for line in (*_tests(each, names), *_tiles(each, names)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _scores(each: SetComparison, names: tuple[str, str]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("score")
    for name in names:
        grid.add_column(escape(name), justify="right", overflow="fold", max_width=24)
    grid.add_column("difference (95 % interval)", no_wrap=True)
    for row in each.scores.to_dict("records"):
        grid.add_row(
            row["score"], *(cells.shown(row[name], row["score"]) for name in names), _signed(row["difference"])
        )
    return grid


def _signed(difference: Interval) -> str:
    ends = f" ({difference.low:+.3f} to {difference.high:+.3f})" if cells.ends(difference) else ""
    return f"{difference.value:+.3f}{ends}"


def _tests(each: SetComparison, names: tuple[str, str]) -> list[str]:
    if each.discordance is None:
        return ["tests that take tiles for independent (McNemar, DeLong) are left out: they are of known slides"]
    found = each.discordance
    areas = each.classes[each.classes["score"] == "AUC"]
    return [
        f"right by {names[0]} alone {found.only_first:,}, by {names[1]} alone {found.only_second:,}: McNemar's exact "
        f"p = {found.p_value:.2g}, if tiles are independent, which tiles of one slide are not",
        f"AUC by class, DeLong's p, if tiles are independent ({cells.ABSENT}: of fewer than {LEAST} tiles, or no "
        "variance): " + ", ".join(f"{row['class']} {_p(row['DeLong p'])}" for row in areas.to_dict("records")),
    ]


def _p(value: float) -> str:
    return cells.ABSENT if math.isnan(value) else f"{value:.2g}"


def _tiles(each: SetComparison, names: tuple[str, str]) -> list[str]:
    count = len(each.disagreements)
    if not count:
        return ["every tile is told alike"]
    lines = [f"{counted(count, 'tile')} told differently, first those that one is surest of and wrong:"]
    for row in each.disagreements.head(LISTED).to_dict("records"):
        said = ", ".join(f"{name}: {row[name]} {row[f'{name} probability']:.2f}" for name in names)
        lines.append(f"  {row['path']}: is {row['label']}; {said}")
    return lines


def write(comparisons: Sequence[SetComparison], out: Path) -> None:
    """Writes each set's tables as CSV and Parquet.

    Raises:
        UsageError: as `made`.
    """
    with made(out):
        for each in comparisons:
            for name in ("scores", "classes", "disagreements"):
                cells.write(getattr(each, name), out / f"{each.split}-{name}")
            if each.discordance:
                tests = pd.DataFrame([{"test": "McNemar, if tiles are independent"} | asdict(each.discordance)])
                cells.write(tests, out / f"{each.split}-tests")
