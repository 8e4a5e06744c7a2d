"""Progress that suits where it is read: a bar in a terminal, a plain line every half minute in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from trainer.wording import visible

Advance = Callable[[int], None]


@contextmanager
def track(
    description: str, total: int, unit: str = "tiles", *, every_s: float = 30.0, console: Console | None = None
) -> Iterator[Advance]:
    """Show how far a piece of work has come; yields `advance(n)`, to be called after `n` more units.

    Where standard output is no terminal, a plain line appears every `every_s` seconds and one at the end.
    """
    console = console or Console()
    if console.is_terminal:
        display = _bar(console, description, total, unit)
    else:
        display = _lines(console, description, total, unit, every_s)
    with display as advance:
        yield advance


@contextmanager
def _bar(console: Console, description: str, total: int, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        _RateColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)


class _RateColumn(ProgressColumn):
    """Units a second, from the last half minute."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} {self.unit}/s" if rate else "", style="progress.data.speed")


@contextmanager
def _lines(console: Console, description: str, total: int, unit: str, every_s: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def line() -> str:
        rate = done / max(time.monotonic() - start, 1e-9)
        share = 100 * done // max(total, 1)
        left = f", {(total - done) / rate:,.0f} s left" if 0 < done < total else ""
        return f"{description}: {done:,} of {total:,} {unit} ({share} %), {rate:,.0f} {unit}/s{left}"

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= every_s and done < total:
            last = time.monotonic()
            say(line(), console)

    yield advance
    say(line(), console)


def say(text: str, console: Console | None = None) -> None:
    """Print text as it is: no markup, no colours, no line breaks that it does not have itself."""
    console = console or Console()
    console.print(visible(text), markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.file.flush()
