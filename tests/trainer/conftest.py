"""What several tests of the trainer share: a trained run, and a mirror in an object store or in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.leftovers import nothing_is_left as nothing_is_left
from tests.object_store import Store, contents
from trainer.__main__ import main
from trainer.rundir import RunDir

Look = Callable[[], dict[str, bytes]]


@pytest.fixture(scope="session")
def trained_run(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that has come to its end, with averaged weights; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    options: dict[str, object] = {"optim.ema": 0.5, "optim.lr": 0.003, "scale.workers": 1}
    config = write_config(folder / "config.yaml", stores, folder / "runs", options)
    assert main(["train", str(config), "--debug"]) == 0
    return RunDir(folder / "runs" / "small")


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Look]:
    """The URI of an empty mirror, and what is in it."""
    if request.param == "file":
        folder = tmp_path / "mirror"
        return folder.as_uri(), lambda: contents(folder)
    store: Store = request.getfixturevalue("store")
    return store.uri(f"bucket/{tmp_path.name}"), lambda: store.objects(f"{tmp_path.name}/")
