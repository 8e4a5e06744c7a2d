"""What was injected, what was promised, and what came of it: a row for each fault, in a table and in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Fault:
    """One fault that a test injects, and what it measured."""

    number: int
    """Its row in docs/reliability.md."""
    injected: str
    promise: str
    times: int = 0
    """How often it was injected."""
    figure: str = ""
    """What was measured, with its unit."""
    held: bool = True
    """Whether the promise held: not where the test fails, nor where it says so itself."""


def keep(faults: Iterable[Fault], file: Path) -> None:
    """Writes faults into a file, where they replace what it says of the same ones."""
    rows = {(fault.number, fault.injected): fault for fault in [*read(file), *faults]}
    content = [asdict(rows[key]) for key in sorted(rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read(file: Path) -> list[Fault]:
    """The faults that a file knows; none where there is no file."""
    return [Fault(**row) for row in json.loads(file.read_text())] if file.exists() else []


def show(faults: Iterable[Fault], console: Console) -> None:
    """Prints them as a table, in order."""
    table = Table("", "injected", "times", "promise", "figure", "held", box=None, padding=(0, 2, 1, 0))
    for fault in sorted(faults, key=lambda fault: (fault.number, fault.injected)):
        held = "[green]held[/]" if fault.held else "[red]not held[/]"
        table.add_row(str(fault.number), fault.injected, str(fault.times), fault.promise, fault.figure, held)
    console.print(table)
