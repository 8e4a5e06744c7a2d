"""What many tests share: demo tiles, packed once a session; a configuration that trains in seconds; an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

from tests.object_store import Store, free_port
from trainer.config import Config, load_config
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source

settings.register_profile("untimed", deadline=None)  # machines are noisy
settings.load_profile("untimed")
pytest_plugins = ["tests.faults.rows"]
REPOSITORY = Path(__file__).parents[1]
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small training store and an external one."""
    return make_stores(tmp_path_factory.mktemp("stores"))


def make_stores(folder: Path, seed: int = 3) -> tuple[Path, Path]:
    """A training store (99 tiles of 32 px, nine classes, five slides and an odd one) and an external one."""
    train = write_source(folder / "source", tiles=99, size=32, seed=seed, slides=6)
    external = write_source(folder / "external-source", tiles=27, size=32, seed=seed, slides=2, external=True)
    pack(train, folder / "train", processes=1)
    pack(external, folder / "external", processes=1)
    return folder / "train", folder / "external"


@pytest.fixture
def make_config(stores: tuple[Path, Path], tmp_path: Path) -> MakeConfig:
    """Makes a small configuration; options are given by dotted key."""

    def make(**options: object) -> Config:
        return load_config(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options))

    return make


def write_config(file: Path, stores: tuple[Path, Path], storage: Path, options: dict[str, object]) -> Path:
    """Writes a configuration that trains in seconds."""
    content: dict[str, dict[str, object]] = {
        "run": {"storage": str(storage), "name": "small", "seed": 7},
        "data": {"tiles": str(stores[0]), "external": {"elsewhere": str(stores[1])}, "val_fraction": 0.34},
        "augment": {"input_size": 32},
        "model": {"weights": "random", "unfrozen_depth": 0},
        "loop": {"epochs": 2, "batch_size": 12, "precision": "fp32"},
        "scale": {"gpu": False, "cpus_per_worker": 1},
    }
    for key, value in options.items():
        section, option = key.split(".")
        content.setdefault(section, {})[option] = value
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def credentials() -> Iterator[None]:
    """As they are given to the program: in the environment."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def store(credentials: None) -> Iterator[Store]:  # noqa: ARG001
    store = Store(free_port())
    yield store
    store.kill()
