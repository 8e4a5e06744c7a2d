"""Real faults, injected: each test says what it injects and what is promised, and a table at the end what came of it.

`@pytest.mark.fault(NUMBER, INJECTED, PROMISE)` and the fixture `fault` make the row; tests fill in times and figure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.ledger import Fault, keep, show
from tests.faults.small import Small, make_search, make_small
from tests.trainer.search.searches import Command as SearchCommand

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
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """The row of this test."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "a test of a fault says which: @pytest.mark.fault(number, injected, promise)"
    row = Fault(*marker.args)
    yield row
    if PASSED in request.node.stash:
        row.held = request.node.stash[PASSED]
        request.config.stash[FAULTS].append(row)


def pytest_terminal_summary(config: pytest.Config) -> None:
    if faults := config.stash[FAULTS]:
        show(faults, Console())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if file := os.environ.get(LEDGER):
        keep(session.config.stash[FAULTS], Path(file))


@pytest.fixture(scope="session")
def undisturbed(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small run that nobody disturbed; not to be changed."""
    small = make_small(stores, tmp_path_factory.mktemp("undisturbed"))
    assert small.train() == 0
    return small


@pytest.fixture
def small_run(stores: tuple[Path, Path], undisturbed: Small, tmp_path: Path) -> Small:
    """The same run, not yet begun."""
    return make_small(stores, tmp_path, undisturbed.storage / "weights")


@pytest.fixture(scope="session")
def searched(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small search that nobody disturbed, and that has ended; not to be changed."""
    config = make_search(stores, tmp_path_factory.mktemp("searched"))
    code, output = SearchCommand(config).end()
    assert code == 0, output
    return config
