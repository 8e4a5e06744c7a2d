import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from trainer.config import Config, dump, flatten, load_config
from trainer.errors import UsageError


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def test_command_line_over_file_over_default(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {tiles: store}\noptim: {lr: 3e-4}\nloop: {epochs: 5}\n")
    config = load_config(file, ["--loop.epochs", "7", "--scale.workers=2", "--data.external", '{"x": "/there"}'])
    assert (config.optim.lr, config.loop.epochs, config.loop.batch_size) == (3e-4, 7, 128)
    assert config.scale.workers == 2
    assert config.data.external == {"x": Path("/there")}


def test_the_resolved_configuration_loads_back(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {tiles: store, external: {a: b}}\noptim: {lr: 3e-4}\n"))
    assert load_config(write(tmp_path, dump(config))) == config


def test_paths_become_absolute(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {tiles: store}\nmodel: {weights: own.pth}\n"))
    assert config.data.tiles == Path("store").absolute()
    assert config.model.weights == str(Path("own.pth").absolute())
    assert config.run.storage.is_absolute()


def test_all_problems_at_once_each_with_its_place(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "data: {tiles: store, vall_fraction: 0.2}\noptim: {lr: fast}\nmodel: {unfrozen_depth: 6}\n"
        "scale: {workers: many}\naugment: {eval_resize: 256}\nlopo: {epochs: 1}\n",
    )
    with pytest.raises(UsageError) as error:
        load_config(file, ["--optim.lx", "3", "--loop.epochs", "-1"])
    lines = str(error.value).splitlines()
    for words in (
        (str(file), "data.vall_fraction", "did you mean data.val_fraction?"),
        (str(file), "optim.lr", "'fast'"),
        (str(file), "model.unfrozen_depth", "less than or equal to 5", "given: 6"),
        (str(file), "scale.workers", "'many'", "'auto'"),
        (str(file), "augment", "eval_resize and eval_crop go together"),
        (str(file), "lopo", "did you mean loop?"),
        ("command line", "optim.lx", "did you mean optim.lr?"),
        ("command line", "loop.epochs", "greater than or equal to 1", "'-1'"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a: [", "not valid YAML"),
        ("- a", "must hold sections"),
        ("optim: {lr: 1}", "data"),
        ("data: {tiles: s, val_fraction: 0.6, test_fraction: 0.5}", "leave something to train on"),
        ("data: {tiles: s, external: {val: t}}", "may not be called val"),
        ("data: {tiles: s}\naugment: {crop_scale: [1.0, 0.5]}", "crop_scale must be"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "missing.yaml" if text is None else write(tmp_path, text)
    with pytest.raises(UsageError, match=words):
        load_config(file)


@given(st.binary(max_size=60))
def test_no_bytes_make_it_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        load_config(file)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_file_loads(file: Path) -> None:
    assert isinstance(load_config(file), Config)


def test_every_option_is_read_somewhere(tmp_path: Path) -> None:
    """Each option's name appears as an attribute in the code outside of config.py."""
    sources = [file for file in (REPOSITORY / "trainer").rglob("*.py") if file.name != "config.py"]
    trees = [ast.parse(file.read_text()) for file in sources]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    config = load_config(write(tmp_path, "data: {tiles: store}\n"))
    # The names of the only architecture and the only optimizer are read by people.
    options = {key.split(".")[1] for key in flatten(config.model_dump())} - {"arch"}
    assert options <= read, options - read
