import os
import shutil
import threading
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.tiles import stage as stage_module
from trainer.tiles.meta import TILES
from trainer.tiles.stage import stage
from trainer.tiles.store import TileStore


def test_workers_of_one_node_share_one_verified_copy(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TileStore.open(stores[0])
    copied: list[Path] = []

    def counting(file: Path, to: Path) -> None:
        copied.append(file)
        shutil.copyfile(file, to)

    monkeypatch.setattr(stage_module, "copyfile", counting)
    found: list[TileStore] = []
    workers = [threading.Thread(target=lambda: found.append(stage(store, tmp_path / "local"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert sorted(copied) == sorted(stores[0].iterdir())
    assert {copy.path for copy in found} == {found[0].path}
    assert found[0].path != store.path
    assert found[0].fingerprint == store.fingerprint
    assert (found[0].tiles == store.tiles).all()


def test_a_copy_that_is_not_the_store_is_refused(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(file: Path, to: Path) -> None:
        data = bytearray(file.read_bytes())
        if file.name == TILES:
            data[-1] ^= 1
        to.write_bytes(data)

    monkeypatch.setattr(stage_module, "copyfile", damaging)
    with pytest.raises(RunError, match="have changed"):
        stage(TileStore.open(stores[0]), tmp_path / "local")
    assert not list((tmp_path / "local").rglob("store-*"))


def test_without_room_the_folder_and_the_numbers_are_named(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(stage_module, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"has 0.0 GB free.*data.stage: null"):
        stage(TileStore.open(stores[0]), tmp_path / "local")


def test_what_others_may_write_to_is_not_used(stores: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / f"tissuegrid-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    with pytest.raises(RunError, match="can be written by others"):
        stage(TileStore.open(stores[0]), tmp_path)
