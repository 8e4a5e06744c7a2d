"""The table in a terminal, as wide as that is, or in a pipe, as wide as it must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from analysis.search import Search, Trial
from analysis.table import notes
from analysis.table.columns import Column, TrialTable

LEFT_OUT_FIRST = ("host", "tiles_per_s", "val/loss", "worker_seconds", "epochs")
"""What a narrow terminal goes without, in this order."""
LONGEST = 20
"""Characters of a searched value; of longer ones the end is shown."""
SHORTEST_HOST = 6
STYLES = {"running": "cyan", "waiting": "dim", "stopped": "dim", "diverged": "red", "failed": "red"}


@dataclass(frozen=True)
class _Shown:
    """A column as it is printed."""

    column: Column
    heading: tuple[str, str]
    cells: list[str]

    @cached_property
    def width(self) -> int:
        return max(map(cell_len, (*self.heading, *self.cells)))


def show(table: TrialTable, console: Console) -> None:
    """Prints the table; lines are broken only where a person reads them in a terminal."""
    width = console.width if console.is_terminal else None
    for line in lines(table, width):
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def lines(table: TrialTable, width: int | None = None, most: int | None = None) -> Iterator[Text]:
    """The table and all that belongs to it, line by line.

    Args:
        table: the trials.
        width: columns of the terminal; None: as many as are needed.
        most: rows of trials that are shown, those that run before others; None: all.
    """
    search = table.search
    hosts = {trial.host.partition(".")[0] for trial in table.rows if trial.host}
    yield Text(notes.title(search) + (f"; on {min(hosts)}" if len(hosts) == 1 else ""), style="bold")
    columns, left_out = _fitting(table, width, with_host=len(hosts) > 1)
    yield from _heading(columns)
    chosen = _most_telling(table.rows, len(table.rows) if most is None else most)
    for place in chosen:
        yield _row(columns, place, search, table.rows[place])
    if more := len(table.rows) - len(chosen):
        yield Text(f"... and {more} more", style="dim")
    yield Text("")
    for note in (*notes.legend(table), notes.sources(search)):
        yield Text(note)
    if left_out:
        yield Text(f"not shown in {width} columns: {', '.join(left_out)}", style="dim")
    for warning in notes.warnings(search):
        yield Text(f"warning: {warning}", style="yellow")
    yield from _finals(search)


def _most_telling(trials: Sequence[Trial], most: int) -> list[int]:
    """The places of at most so many trials, in their order: of those that run, then of the first."""
    by_worth = sorted(range(len(trials)), key=lambda place: (trials[place].status != "running", place))
    return sorted(by_worth[:most])


def _fitting(table: TrialTable, width: int | None, *, with_host: bool) -> tuple[list[_Shown], list[str]]:
    """The columns that fit, and the names of those left out."""
    hidden = {"selection"} if with_host else {"selection", "host"}  # the marks say the one, the title the other
    every = [column for column in table.shown if column.name not in hidden]
    shown = {column.name: _shown(column, table.rows) for column in every}
    left_out = []
    for name in LEFT_OUT_FIRST:
        spare = 0 if width is None else width - _width(list(shown.values()))
        if spare >= 0:
            break
        if name not in shown:
            continue
        if name == "host" and shown[name].width + spare >= SHORTEST_HOST:
            shown[name] = _cut(shown[name], shown[name].width + spare)
            break
        left_out.append(shown.pop(name).column.title)
    return list(shown.values()), left_out


def _shown(column: Column, trials: Sequence[Trial]) -> _Shown:
    assert column.text is not None
    first, _, second = column.heading.rpartition("\n")
    cells = [column.text(trial) for trial in trials]
    return _cut(_Shown(column, (first, second), cells), LONGEST)


def _cut(shown: _Shown, width: int) -> _Shown:
    """The column at most so wide; of what is longer the end is kept, where names of nodes and files differ."""
    cells = [cell if cell_len(cell) <= width else "…" + cell[1 - width :] for cell in shown.cells]
    return _Shown(shown.column, shown.heading, cells)


def _width(columns: Sequence[_Shown]) -> int:
    return 1 + sum(column.width + _gap(column) for column in columns) - _gap(columns[-1])


def _gap(column: _Shown) -> int:
    """Spaces behind a column; the status and how far it got belong together."""
    return 1 if column.column.name == "status" else 2


def _heading(columns: Sequence[_Shown]) -> Iterator[Text]:
    for line in (0, 1):
        yield Text((" " + _joined(columns, [column.heading[line] for column in columns])).rstrip(), style="bold")


def _row(columns: Sequence[_Shown], place: int, search: Search, trial: Trial) -> Text:
    mark = _mark(search, trial)
    line = (mark + _joined(columns, [column.cells[place] for column in columns])).rstrip()
    return Text(line, style="bold green" if mark == ">" else "bold" if mark == "*" else STYLES.get(trial.status, ""))


def _mark(search: Search, trial: Trial) -> str:
    choice = search.choice
    if choice is None or trial.name not in choice.within:
        return " "
    return ">" if trial.name == choice.cheapest else "*"


def _joined(columns: Sequence[_Shown], cells: Sequence[str]) -> str:
    return "".join(
        _padded(cell, column.width, right=column.column.right) + " " * _gap(column)
        for column, cell in zip(columns, cells, strict=True)
    )


def _padded(cell: str, width: int, *, right: bool) -> str:
    return " " * (width - cell_len(cell)) + cell if right else set_cell_size(cell, width)


def _finals(search: Search) -> Iterator[Text]:
    rows = [notes.FINAL_HEADINGS, *(row.texts for row in notes.finals(search))]
    if len(rows) == 1:
        return
    yield Text("")
    yield Text(notes.finals_title(search), style="bold")
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        cells = [
            _padded(cell, width, right=2 <= at <= 3) for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield Text("  ".join(cells).rstrip(), style="bold" if place == 0 else "")
    for note in notes.finals_notes(search):
        yield Text(note)
