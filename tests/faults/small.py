"""A small run that saves at every step, for faults to be injected into."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.command import Command
from tests.conftest import write_config
from tests.runs import weights
from tests.trainer.search.searches import BASE
from trainer.__main__ import main
from trainer.checkpoint import newest_good
from trainer.rundir import RunDir

OPTIONS: dict[str, object] = {"loop.batch_size": 8, "loop.checkpoint_every": 1, "scale.workers": 1}
EPOCHS = 2


@contextmanager
def one_core() -> Iterator[None]:
    """What is started meanwhile has one core, on which so little work is done sooner than on several."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(sorted(before))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Small:
    """A run's configuration and place."""

    config: Path
    run: RunDir

    @property
    def storage(self) -> Path:
        return self.run.path.parent

    def train(self, *flags: str) -> int:
        """The real command, in this process; its exit code."""
        with one_core():
            return main(["train", str(self.config), "--debug", *flags])

    def command(self, *flags: str) -> Command:
        """The same in a process of its own."""
        with one_core():
            return Command(self.config, "--debug", *flags)

    @property
    def good_step(self) -> int:
        """The step of the newest checkpoint, of which none is damaged."""
        checkpoint, said = newest_good(self.run)
        assert not said
        return checkpoint.step if checkpoint else 0

    @property
    def weights(self) -> str:
        """What was learned at last, to the bit."""
        return weights(self.run)


def make_small(stores: tuple[Path, Path], folder: Path, base: Path | None = None, **options: object) -> Small:
    """A run in a folder, which may have the starting weights of another one's storage."""
    storage = folder / "storage"
    storage.mkdir(parents=True)
    if base:
        (storage / "weights").symlink_to(base)
    config = write_config(folder / "config.yaml", stores, storage, {**OPTIONS, "loop.epochs": EPOCHS, **options})
    return Small(config, RunDir(storage / "small"))


def make_search(stores: tuple[Path, Path], folder: Path) -> Path:
    """The configuration of a search of three short trials, one after another."""
    options = {"search.trials": 3, "loop.epochs": 2, "loop.checkpoint_every": 2, "scale.cpus_per_worker": 2}
    return write_config(folder / "search.yaml", stores, folder / "storage", {**BASE, **options})
