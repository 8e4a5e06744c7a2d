"""Configurations of small searches, and a look at what these have left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.trainer.search.searches import (
    BASE,
    started_here,
)


@pytest.fixture
def make(stores: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration of a small search; options are given by dotted key."""

    def write(**options: object) -> Path:
        return write_config(tmp_path / "search.yaml", stores, tmp_path / "runs", {**BASE, **options})

    return write


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No process that a command started stays behind."""
    yield
    deadline = time.monotonic() + 30
    while (left := started_here()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
