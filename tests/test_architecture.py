"""Who may import whom, and where Ray may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

RAY = {
    *(f"cluster/{name}.py" for name in ("ray_cluster", "submit", "upload")),
    *(f"trainer/{name}.py" for name in ("board", "experiment", "group", "remote", "trial")),
}
# Inside trainer, each layer may import those before it.
LAYERS = [
    {"errors", "durable", "stop", "job", "board", "stall", "standard_error", "temperature", "wording"},
    {"progress"},
    {"strict_yaml", "config_errors", "live"},
    {"space", "config_types"},
    {"config"},
    {"tiles", "model", "rundir", "ranks", "ema"},
    {
        "weights",
        "lock",
        "data",
        "predictions",
        "display",
        "scale",
        "ledger",
        "fruitless",
        "tensorboard",
        "optim",
        "identity",
    },
    {"searchers", "selection", "search_display", "concurrency", "trunk", "calibration"},
    {"checkpoint"},
    {"loop", "mirror"},
    {"copier"},
    {"plan"},
    {"worker"},
    {"trained"},
    {"new_tiles", "export_formats"},
    {"predict_worker"},
    {"remote"},
    {"group"},
    {"launch"},
    {"predict", "export"},
    {"search_plan", "stepwise"},
    {"jobs", "trial", "search_preview"},
    {"experiment"},
    {"search"},
    {"demo"},
    {"__main__"},
]
FILES = sorted(
    file.relative_to(REPOSITORY)
    for folder in ("cluster", "trainer", "analysis")
    for file in (REPOSITORY / folder).rglob("*.py")
)


def imports(file: Path) -> Iterator[str]:
    """The absolute names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_the_right_way(file: Path) -> None:
    package = file.parts[0]
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top == "ray":
            assert str(file) in RAY, f"{file} imports Ray"
        if package == "cluster":
            assert top not in {"trainer", "analysis"}, f"{file} imports {name}"
        if package == "analysis":
            assert top != "cluster", f"{file} imports {name}"
            if top == "trainer":
                allowed = {
                    "errors",
                    "progress",
                    "config",
                    "tiles",
                    "model",
                    "checkpoint",
                    "rundir",
                    "standard_error",
                    "temperature",
                    "wording",
                }
                assert rest.split(".")[0] in allowed, f"{file} imports {name}"
        if package == "trainer":
            assert top != "analysis" or file.name == "__main__.py", f"{file} imports {name}"
            assert top != "cluster" or name.startswith("cluster.ray_cluster."), f"{file} imports {name}"
            if top == "trainer" and file.parts[1] != rest.split(".")[0]:
                mine = layer(file.parts[1].removesuffix(".py")) if len(file.parts) > 1 else 0
                assert layer(rest.split(".")[0]) < mine or file.parts[1] == "tiles", f"{file} imports {name}"


def test_tiles_stand_on_configuration_alone() -> None:
    for file in FILES:
        if file.parts[:2] == ("trainer", "tiles"):
            ours = {name.split(".")[1] for name in imports(file) if name.startswith("trainer.")}
            assert ours <= {"tiles", "config", "errors", "progress", "durable", "wording"}, f"{file} imports {ours}"


def test_every_package_says_what_it_is() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse((REPOSITORY / file).read_text())), f"{file} has no docstring"
