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
PASSED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and not report.skipped:
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Iterator[list[Fault]]:
    """The rows of this test, one for each mark, from the lowest to the uppermost."""
    rows = [Fault(*marker.args) for marker in request.node.iter_markers("fault")]
    assert rows, "a test of a fault says which: @pytest.mark.fault(number, injected, promise)"
    yield rows
    if PASSED in request.node.stash:
        for row in rows:
            row.held = request.node.stash[PASSED]
            request.config.stash[FAULTS].append(row)


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
