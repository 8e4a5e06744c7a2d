"""The real command, started again and again: each start a process of its own, forked from one that has imported all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tests.command import wait_until
from tests.conftest import write_config
from tests.faults.file_events import LOOKS, watch
from trainer.__main__ import main
from trainer.rundir import RunDir
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.starts", "trainer.launch"])
LIMIT_S = 300.0


class Fork:
    """A function in a process of its own, in this one's environment; what it prints, and does to a folder, is noted."""

    def __init__(self, notes: Path, watched: Path, function: Callable[..., int], *arguments: Any):
        self._said, self._changes = notes.with_suffix(".said"), notes.with_suffix(".changes")
        self._arguments = arguments  # a barrier among them lasts as long as this
        self.process = FORKS.Process(
            target=_call, args=(dict(os.environ), self._said, self._changes, watched, function, arguments)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None, "it has been started"
        return self.process.pid

    def end(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None, "it has not ended"
        return self.process.exitcode, self._said.read_text()

    def changes(self) -> list[tuple[str, Path]]:
        """What it did, or tried to do, to which files and folders of the folder."""
        return [(act, Path(path)) for act, path in map(json.loads, self._changes.read_text().splitlines())]

    def stop(self) -> None:
        """SIGSTOP: it does nothing, and does not know it."""
        os.kill(self.pid, signal.SIGSTOP)
        assert self.stops()

    def stops(self) -> bool:
        """Waits until it is stopped; False where it has ended instead."""
        wait_until(lambda: not self.process.is_alive() or _state(self.pid) == "T", "it to be stopped")
        return self.process.is_alive()

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Place:
    """One configuration, to be started by its run's name. Several in a folder share its storage."""

    def __init__(self, folder: Path, stores: tuple[Path, Path], options: dict[str, object], name: str = "small"):
        self.folder, self.storage, self.name = folder, folder / "runs", name
        settings = {"data.external": {}, "loop.batch_size": 9, "scale.workers": 1, "run.name": name, **options}
        self.config = write_config(folder / f"{name}.yaml", stores, self.storage, settings)
        self.run = RunDir(self.storage / name)

    def train(self, who: str, *flags: str, at: Barrier | None = None) -> Fork:
        """`python -m trainer train CONFIG --debug`, beginning when all that share a barrier do."""
        arguments = ["train", str(self.config), "--debug", *flags]
        return Fork(self.folder / f"{self.name}-{who}", self.storage, _command, arguments, at)

    def train_twice_at_once(self, *flags: str) -> tuple[Fork, Fork]:
        at = FORKS.Barrier(2)
        return self.train("one", *flags, at=at), self.train("other", *flags, at=at)


def few_tiles(folder: Path) -> tuple[Path, Path]:
    """A store of 36 tiles, in place of a training store and an external one."""
    pack(write_source(folder / "source", tiles=36, size=32, seed=3, slides=4), folder / "few", processes=1)
    return folder / "few", folder / "few"


def end_all() -> None:
    """Kills what is left of the forks."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def _call(
    environment: dict[str, str],
    said: Path,
    changes: Path,
    watched: Path,
    function: Callable[..., int],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    with said.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    notes = changes.open("w", buffering=1)
    watch(watched, lambda act, path: act in LOOKS or notes.write(json.dumps((act, str(path))) + "\n"))
    sys.exit(function(*arguments))


def _command(arguments: list[str], at: Barrier | None) -> int:
    if at:
        at.wait(LIMIT_S)
    return main(arguments)


def _state(pid: int) -> str:
    """As proc(5) has it; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""
