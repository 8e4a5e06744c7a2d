from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from trainer import live, search_display
from trainer.ledger import Record
from trainer.rundir import SearchDir
from trainer.search_display import SearchDisplay

DRAWN: list[tuple[Path, int, int]] = []


def draw(search: Path, width: int, height: int) -> Iterable[Text]:
    DRAWN.append((search, width, height))
    return [Text("the table")]


def record(number: int, status: str, value: float | None) -> Record:
    return Record(f"{number:04d}", f"{number:04d}", number, 0, {"optim.lr": 1e-3}, 5, status=status, value=value)


RECORDS = [record(1, "running", 0.5), record(2, "running", 0.7), record(3, "done", 0.6)]


def shown(stream: io.StringIO, *, terminal: bool) -> SearchDisplay:
    console = Console(file=stream, force_terminal=terminal, width=90, height=30)
    return SearchDisplay(console, SearchDir(Path("runs/search")), "val/balanced_accuracy", "max", draw)


def test_a_terminal_has_the_table_in_its_own_size() -> None:
    DRAWN.clear()
    stream = io.StringIO()
    with shown(stream, terminal=True) as display:
        display.update(RECORDS, 8, force=True)
        deadline = time.monotonic() + 10
        while "the table" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "the table" in stream.getvalue()
    assert [(Path("runs/search"), 90, 28)] == DRAWN


def test_a_log_says_now_and_then_how_far_it_is_and_at_once_what_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    with shown(stream, terminal=False) as display:
        for trials, rate in ((["0001"], 100.4), (["0002"], 50.0)):
            display.show({"phase": "train", "trials": trials, "tiles_per_s": rate})
        display.begin("trial", RECORDS, 8)
        display.update([record(1, "running", 0.5), record(2, "stopped", 0.7), RECORDS[2]], 8, force=True)
    lines = stream.getvalue().splitlines()
    best = "best val/balanced_accuracy so far 0.7000 (trial 0002)"
    assert lines[0] == f"1 of 8 trials ended, 2 running at 150 tiles/s; {best}"
    assert lines[1].startswith("trial 0002 stopped (optim.lr 0.001), val/balanced_accuracy 0.7000")
    assert lines[2] == f"2 of 8 trials ended, 1 running at 100 tiles/s; {best}"


def test_a_trial_that_failed_before_it_was_seen_is_mentioned_and_one_of_an_earlier_start_is_not() -> None:
    stream = io.StringIO()
    with shown(stream, terminal=False) as display:
        display.begin("trial", [record(1, "failed", None)], 3)
        display.update([record(1, "failed", None), record(2, "failed", None)], 3, force=True)
        display.update([record(1, "failed", None), record(2, "failed", None)], 3, force=True)
    (line,) = [line for line in stream.getvalue().splitlines() if "failed" in line]
    assert line.startswith("trial 0002 failed")


def test_a_table_that_cannot_be_drawn_now_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn now and then, since files are read for it; the summary comes oftener."""
    stream, tables = io.StringIO(), iter(["the first table", OSError("no answer"), "another table"])

    def drawn(*_: object) -> Iterable[Text]:
        found = next(tables)
        if isinstance(found, OSError):
            raise found
        yield Text(found)

    monkeypatch.setattr(search_display, "UPDATE_S", 0.0)
    console = Console(file=stream, force_terminal=True, width=90, height=30)
    with SearchDisplay(console, SearchDir(Path("search")), "val/balanced_accuracy", "max", drawn) as display:
        assert display._live is not None
        seen = []
        for total in range(4):
            display.update(RECORDS, total, force=total == 2)
            seen.append([part.plain for part in display._live.get_renderable().renderables])
            monkeypatch.setattr(search_display, "DRAW_S", 0.0 if total == 2 else 60.0)
    assert [table for table, _ in seen] == ["the first table"] * 3 + ["another table"]
    assert [summary.split(" ")[2] for _, summary in seen] == [f"{total}" for total in range(4)]
