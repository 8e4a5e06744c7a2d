"""The table of a search while it is searched, as long as a terminal is high."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from analysis.search import read_search
from analysis.table.columns import trial_table
from analysis.table.terminal import lines

FEWEST = 3


def live_table(search: Path, width: int, height: int) -> list[Text]:
    """The table as it is now, in at most `height` lines, unless that left no room for three trials.

    Args:
        search: the search directory.
        width: columns of the terminal.
        height: lines that there is room for.
    """
    table = trial_table(read_search(search))
    whole = list(lines(table, width))
    if (over := len(whole) - height) <= 0:
        return whole
    return list(lines(table, width, most=max(FEWEST, len(table.rows) - over - 1)))
