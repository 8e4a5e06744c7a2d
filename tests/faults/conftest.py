"""Real faults, injected: each test says what it injects and what is promised, and a table at the end what came of it.

`@pytest.mark.fault(NUMBER, INJECTED, PROMISE)` and the fixture `fault` make the row; tests fill in times and figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import write_config
from tests.faults.ledger import Fault, keep, show
from tests.faults.small import Small, make_search, make_small
from tests.faults.training import OPTIONS, STEPS, Training
from tests.leftovers import nothing_is_left as nothing_is_left
from tests.runs import trained_alone, weights
from tests.trainer.search.searches import Command as SearchCommand
from trainer.rundir import RunDir

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


@pytest.fixture
def make_training(stores: tuple[Path, Path], tmp_path: Path) -> Callable[..., Training]:
    """Makes a small training; options that differ are given by dotted key."""

    def make(**options: object) -> Training:
        given = {**OPTIONS, **options}
        return Training(
            write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", given),
            RunDir(tmp_path / "runs" / "small"),
        )

    return make


@pytest.fixture
def training(make_training: Callable[..., Training]) -> Training:
    """A small training."""
    return make_training()


@pytest.fixture(scope="session")
def final_weights(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A digest of the weights that the same training ends with where nobody disturbs it."""
    folder = tmp_path_factory.mktemp("final-weights")
    return weights(trained_alone(write_config(folder / "config.yaml", stores, folder / "runs", OPTIONS)), STEPS)


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
