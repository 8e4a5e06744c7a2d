import ast
import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from trainer.config import IDENTITY_DEFAULTS, Config, add_flags, deviations, dump, flatten, load_config
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
        (str(file), "augment.eval_resize, augment.eval_crop: go together"),
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
        ("optim: {lr: 1}", "data.tiles: is missing"),
        ("data: {tiles: s, val_fraction: 0.6, test_fraction: 0.5}", "leave something to train on"),
        ("data: {tiles: s, external: {val: t}}", "may not be called val"),
        ("data: {tiles: s}\naugment: {crop_scale: [1.0, 0.5]}", r"crop_scale: should be \[smallest, largest\]"),
        ("data: {tiles: s}\nscale: 3", "scale: should hold options"),
        ("data: [s]", "data: should hold options"),
        ("data: {tiles: s}\nrun: {seed: 1}\nrun: {name: x}", "run is given twice, in lines 2 and 3"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "missing.yaml" if text is None else write(tmp_path, text)
    with pytest.raises(UsageError, match=words):
        load_config(file)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--augment.crop_scale", "[1.0, 0.5]"],
            "augment.crop_scale: should be [smallest, largest] (given: [1.0, 0.5])",
        ),
        (["--augment.eval_crop", "48"], "augment.eval_resize, augment.eval_crop: go together: give both or neither"),
        (["--data.test_fraction", "0.6"], "data.val_fraction, data.test_fraction: together must leave something"),
        (["--data.external", '{"val": "x"}'], "data.external: an external store may not be called val"),
        (["--run.name", "a b"], "run.name: should be text of letters, digits and . _ - only, at most 100"),
        (["--loop.epochs", "few"], "loop.epochs: should be a whole number (given: 'few')"),
        (
            ["--scale.workers", "8:2"],
            "scale.workers: should be 'auto' or a whole number or MIN:MAX with 1 <= MIN <= MAX",
        ),
        (["--loop.checkpoint_every", "5x"], "should be 'epoch' or a whole number or a time such as 10min, 90s or 2h"),
        (["--optim.momentum", "0.8"], "optim.momentum, optim.name: only sgd has it (given: 0.8 and adam)"),
        (
            ["--optim.name", "sgd", "--optim.momentum", "0.8", "--optim.schedule", "onecycle"],
            "optim.momentum, optim.schedule: onecycle moves the momentum itself; leave it at null",
        ),
        (
            ["--optim.warmup_epochs", "1", "--optim.schedule", "onecycle"],
            "optim.warmup_epochs, optim.schedule: onecycle has a warm-up of its own; leave this one at 0",
        ),
        (
            ["--optim.warmup_epochs", "3"],
            "optim.warmup_epochs, loop.epochs: the warm-up must end before the run does (given: 3 and 3)",
        ),
        (["--optim.layer_decay", "0"], "optim.layer_decay: should be greater than 0 (given: '0')"),
        (["--optim.layer_decay", "1.1"], "optim.layer_decay: should be less than or equal to 1 (given: '1.1')"),
        (["--optim.ema", "1"], "optim.ema: should be less than 1 (given: '1')"),
        (["--optim.clip_norm", "-1"], "optim.clip_norm: should be greater than or equal to 0 (given: '-1')"),
        (["--augment.hue", "0.6"], "augment.hue: should be less than or equal to 0.5 (given: '0.6')"),
        (["--augment.rot90", "often"], "augment.rot90: should be true or false (given: 'often')"),
        (["--scale", "3"], "scale: is a section; give its options, e.g. --scale.workers"),
        (["--optim", "{}"], "optim: is a section; give its options, e.g. --optim.name"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_said_in_the_users_words_and_place(tmp_path: Path, flags: list[str], line: str) -> None:
    """The file gives the other halves: what is wrong came from the command line."""
    file = write(
        tmp_path, "data: {tiles: s, val_fraction: 0.5}\naugment: {crop_ratio: [0.9, 1.1]}\nscale: {gpu: false}\n"
    )
    with pytest.raises(UsageError) as error:
        load_config(file, flags)
    (problem,) = error.value.args
    assert problem.startswith("command line: ")
    assert line in problem


@pytest.mark.parametrize("key", ["augment.crop_scale", "augment.crop_ratio", "data.external", "data.class_map"])
def test_options_of_several_values_say_how_they_are_given_as_flags(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parser = ArgumentParser()
    add_flags(parser)
    (form,) = re.findall(rf"As a flag: (--{key} '.*?')", parser.format_help())
    file = write(tmp_path, "data: {tiles: store}\n")
    load_config(file, shlex.split(form))
    for flags in ([f"--{key}", "0.5", "1.0"], [f"--{key}", "[0.5"], [f"--{key}.b", "PATH"]):
        with pytest.raises(UsageError) as error:
            load_config(file, flags)
        assert f"as a flag: {form}" in error.value.args[0]


def test_names_derived_from_options_do_not_change_when_there_are_more_of_them(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {tiles: s}\noptim: {lr: 3e-4, ema: 0.0}\nrun: {seed: 0}\n"))
    assert deviations(config) == {"optim.lr": 3e-4}
    assert IDENTITY_DEFAULTS["optim.lr"] == 1e-4


def test_null_is_null_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {tiles: s}\nrun: {name: x}\n")
    assert load_config(file, ["--run.name", "null"]).run.name is None


def test_workers_from_to_need_no_quotes(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "data: {tiles: s}\nscale: {workers: 2:8}\n")).scale.workers == "2:8"


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("optim.lx", "optim.lr"),
        ("loop.batch-size", "loop.batch_size"),
        ("optim.epochs", "loop.epochs"),
        ("lr", "optim.lr"),
        ("lop.epoch", "loop.epochs"),
        ("optim.foo", None),
        ("foo", None),
        ("foo.x", None),
    ],
)
def test_only_what_is_near_is_suggested(tmp_path: Path, key: str, suggestion: str | None) -> None:
    with pytest.raises(UsageError) as error:
        load_config(write(tmp_path, "data: {tiles: s}\n"), [f"--{key}", "1"])
    ending = f"; did you mean {suggestion}?" if suggestion else ""
    assert str(error.value) == f"command line: {key}: there is no such option{ending}"


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
    # The name of the only architecture is read by people.
    options = {key.split(".")[1] for key in flatten(config.model_dump())} - {"arch"}
    assert options <= read, options - read
