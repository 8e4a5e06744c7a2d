"""Makes rows of a table of what tests of faults injected, what they promise, and what came of it.

`@pytest.mark.fault(NUMBER, INJECTED, PROMISE)` and the fixture `fault` make a row; the test fills in times and figure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.ledger import Fault, keep, show

LEDGER = "FAULTS"
"""The environment's name for the file in which the rows are kept, if they shall be."""
FAULTS = pytest.StashKey[list[Fault]]()
"""Of the session."""
ROWS = pytest.StashKey[list[Fault]]()
"""Of a test."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What is left behind is looked for when a test is over: a promise has held once that is, too."""
    report = yield
    if not any(item.iter_markers("fault")):
        return report
    rows = item.stash.setdefault(ROWS, _rows(item))
    if report.skipped:
        rows.clear()
    for row in rows:
        row.held &= not report.failed
    if report.when == "teardown":
        item.config.stash[FAULTS] += rows
    return report


def _rows(item: pytest.Item) -> list[Fault]:
    return [Fault(*marker.args) for marker in item.iter_markers("fault")]


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> list[Fault]:
    """The rows of this test, one for each mark, from the lowest to the uppermost."""
    return request.node.stash.setdefault(ROWS, _rows(request.node))


@pytest.fixture
def fault(faults: list[Fault]) -> Fault:
    """The row of this test, which has one."""
    (row,) = faults
    return row


def pytest_terminal_summary(config: pytest.Config) -> None:
    if faults := config.stash[FAULTS]:
        show(faults, Console())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if file := os.environ.get(LEDGER):
        keep(session.config.stash[FAULTS], Path(file))
