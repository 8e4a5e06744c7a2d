import shutil
from pathlib import Path

import pytest

from tests.conftest import MakeConfig
from trainer.data import open_data
from trainer.errors import UsageError
from trainer.tiles.pack import pack


@pytest.fixture
def mixed(stores: tuple[Path, Path], tmp_path: Path) -> Path:
    """An external store among whose tiles are three of the training store, under other names and in other classes."""
    sources = stores[0].parent
    folder = shutil.copytree(sources / "external-source", tmp_path / "mixed-source")
    for name, tile in zip("abc", sorted((sources / "source").rglob("*.png"))[::20], strict=False):
        shutil.copy(tile, folder / "TUM" / f"{name}.png")
    (folder / "manifest.csv").unlink()
    pack(folder, tmp_path / "mixed", processes=1)
    return tmp_path / "mixed"


def test_training_tiles_in_an_external_store_are_counted(make_config: MakeConfig, mixed: Path) -> None:
    assert open_data(make_config()).warnings() == []
    (warning,) = open_data(make_config(**{"data.external": {"mixed": str(mixed)}})).warnings()
    assert "data.external.mixed: 3 of its 30 tiles are in the training store too" in warning


def test_an_external_store_of_training_tiles_alone_is_refused(
    make_config: MakeConfig, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    some = tmp_path / "some" / "TUM"
    shutil.copytree(stores[0].parent / "source" / "TUM", some)
    pack(some.parent, tmp_path / "subset", processes=1)
    for store in (stores[0], tmp_path / "subset"):
        with pytest.raises(UsageError, match=r"data.external.same: all tiles of .* are in the training store"):
            open_data(make_config(**{"data.external": {"same": str(store)}}))


def test_a_class_map_of_unknown_classes_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"data.class_map: no store has a class STRO \(did you mean STR\?\), UNK;"):
        open_data(make_config(**{"data.class_map": {"UNK": "DEB", "STRO": "STR", "TUM": "DEB"}}))


def test_what_is_wrong_with_each_store_is_said_at_once(make_config: MakeConfig, stores: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError) as error:
        open_data(make_config(**{"data.tiles": "no/one", "data.external": {"a": "no/two", "b": "no/three"}}))
    assert [problem.split(":")[0] for problem in error.value.args] == [
        "data.tiles",
        "data.external.a",
        "data.external.b",
    ]
    with pytest.raises(UsageError) as error:
        open_data(
            make_config(
                **{"data.class_map": {"X": "Y"}, "data.split": "source", "data.external": {"a": str(stores[0])}}
            )
        )
    assert [problem.split(":")[0] for problem in error.value.args] == [
        "data.class_map",
        "data.external.a",
        "data.split",
    ]
