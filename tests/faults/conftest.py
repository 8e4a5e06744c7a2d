"""Real faults, injected: what they are injected into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.faults.small import Small, make_search, make_small
from tests.faults.training import OPTIONS, STEPS, Training
from tests.leftovers import nothing_is_left as nothing_is_left
from tests.runs import trained_alone, weights
from tests.trainer.search.searches import Command as SearchCommand
from trainer.rundir import RunDir


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
