import shutil
from pathlib import Path

import pytest

from tests.conftest import MakeConfig
from trainer.data import open_data
from trainer.errors import UsageError
from trainer.plan import make_plan
from trainer.scale import Machine, this_machine
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


def test_a_variable_that_names_no_folder_here_is_refused_before_anything_starts(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config(**{"data.stage": "$NODE_DISK/tiles"})
    with pytest.raises(UsageError, match=r"data.stage: \$NODE_DISK/tiles names a variable.*not set.*such as /tmp"):
        make_plan(config, this_machine())
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    _, data, _ = make_plan(config, this_machine())
    staged = data.staged("$NODE_DISK/tiles")
    assert staged.store.path.is_relative_to(tmp_path / "tiles")
    assert staged.fingerprints() == data.fingerprints()


def test_a_cluster_s_nodes_have_variables_of_their_own(make_config: MakeConfig) -> None:
    config = make_config(**{"data.stage": "$NODE_DISK/tiles"})
    plan, _, _ = make_plan(config, Machine(((2, 0),), cluster=True))
    assert plan.config.data.stage == "$NODE_DISK/tiles"


def test_the_training_stores_twin_in_other_colours_is_refused(
    make_config: MakeConfig, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    twin = shutil.copytree(stores[1], tmp_path / f"{stores[0].name}-NONORM")
    with pytest.raises(UsageError, match=rf"data.external.mine: {twin} is {stores[0]} with .*leave it out"):
        make_plan(make_config(**{"data.external": {"mine": str(twin)}}), this_machine())
