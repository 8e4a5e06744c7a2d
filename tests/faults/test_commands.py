"""SIGKILL in the middle of prepare, predict, a report, a search; then the same command again."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.faults.ledger import Fault
from tests.faults.small import Small, make_search, one_core
from tests.faults.strace import injected, needs_strace
from tests.object_store import contents
from tests.runs import weights
from tests.trainer.search.searches import Command as SearchCommand
from tests.trainer.search.searches import search_of, trials_of, wait_until
from tests.trainer.test_predict import assert_same, write_images
from trainer.rundir import PartsDir
from trainer.tiles.store import verify

MANY = 300
"""Tiles of several parts: of one batch, then of four."""
RENAMES = "?rename,?renameat,renameat2"


class Killed:
    """A command, killed when something has come to be."""

    def __init__(self, *command: object):
        argv = [sys.executable, "-m", *map(str, command)]
        with one_core():
            self.process = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL)

    def when(self, reached: Callable[[], bool]) -> None:
        self.wait(reached)
        self.process.kill()
        self.end()

    def as_it_renames(self, reached: Callable[[], bool]) -> None:
        """At the first file that gets its name after something has come to be."""
        self.wait(reached)
        with injected(self.process.pid, RENAMES, "signal=KILL:when=1"):
            self.end()

    def wait(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not reached():
            assert self.process.poll() is None, "it has ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self) -> None:
        assert self.process.wait(timeout=240) < 0, "it was not killed"


def again(*command: object) -> str:
    """The same command to its end; what it said."""
    argv = [sys.executable, "-m", *map(str, command)]
    with one_core():
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large tiles in two classes, so that packing is caught in the middle."""
    draw = np.random.default_rng(0)
    tiles = [np.full((1024, 1024, 3), draw.integers(256, size=3), np.uint8) for _ in range(60)]
    names = [f"{'AB'[number % 2]}/{number}.png" for number in range(len(tiles))]
    return write_images(tmp_path_factory.mktemp("source"), np.stack(tiles), names)


@pytest.mark.slow
@needs_strace
@pytest.mark.fault(25, "SIGKILL of prepare: as it begins, as it packs, as the store gets its name", "starts clean")
def test_prepare(fault: Fault, source: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    again("trainer", "prepare", source, expected)
    folder = tmp_path / "here"
    folder.mkdir()
    store, command = folder / "store", ("trainer", "prepare", source, folder / "store")

    def packs() -> bool:
        return any(file.stat().st_size > 0 for file in folder.glob(".*unfinished*/*/tiles.npy"))

    for kill in (
        lambda killed: killed.when(lambda: any(folder.glob(".*unfinished*"))),
        lambda killed: killed.when(packs),
        lambda killed: killed.as_it_renames(packs),
    ):
        killed = Killed(*command)
        kill(killed)
        assert not store.exists()
        assert any(folder.iterdir()), "it was in the middle"
        fault.times += 1
    again(*command)
    assert verify(store).fingerprint == verify(expected).fingerprint
    assert [path.name for path in folder.iterdir()] == ["store"], "nothing else is left"
    fault.figure = f"no store after any of {fault.times}; then the same one, and nothing left"


@pytest.mark.slow
@pytest.mark.fault(25, "SIGKILL of predict: as it packs, after its first part, after its second", "goes on")
def test_predict(fault: Fault, undisturbed: Small, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (MANY, 32, 32, 3), dtype=np.uint8)
    tiles = write_images(tmp_path / "tiles", pixels, [f"tile-{number:03d}.png" for number in range(MANY)])

    def command(out: Path) -> tuple[object, ...]:
        return "trainer", "predict", undisturbed.run.path, tiles, "--out", out, "--debug", "--scale.gpu", "false"

    again(*command(tmp_path / "expected.parquet"))
    out = tmp_path / "out.parquet"
    parts = PartsDir.of(out)
    for reached in (parts.path.exists, lambda: len(parts.parts()) == 1, lambda: len(parts.parts()) == 2):
        Killed(*command(out)).when(reached)
        assert not out.exists()
        fault.times += 1
    kept = sum(map(len, parts.parts()))
    assert f"goes on after {kept} of {MANY} tiles" in again(*command(out))
    assert_same(out, tmp_path / "expected.parquet")
    assert not parts.path.exists()
    fault.figure = f"{kept} of {MANY} tiles predicted and not again; the same file to the bit"


@pytest.mark.slow
@needs_strace
@pytest.mark.fault(
    25, "SIGKILL of a report: as it begins, as it draws, as the page gets its name", "starts clean; an old page stays"
)
def test_report(fault: Fault, undisturbed: Small, tmp_path: Path) -> None:
    def command(out: Path) -> tuple[object, ...]:
        return "analysis", "report", undisturbed.run.path, "--out", out, "--measured-maps", "0", "--no-audit"

    again(*command(tmp_path / "expected"))
    out = tmp_path / "out"
    page = out / "index.html"

    def draws() -> bool:
        return any(out.rglob("*.png"))

    Killed(*command(out)).when(out.exists)
    Killed(*command(out)).when(draws)
    assert not page.exists()
    Killed(*command(out)).as_it_renames(draws)
    assert not page.exists()
    again(*command(out))
    assert timeless(out) == timeless(tmp_path / "expected")
    old, began = page.read_bytes(), time.time()
    Killed(*command(out)).as_it_renames(lambda: any(file.stat().st_mtime > began for file in out.rglob("*.png")))
    assert page.read_bytes() == old
    fault.times = 4
    fault.figure = "no half page after any of 4; then the same page, and nothing left"


def timeless(folder: Path) -> dict[str, bytes]:
    """The page and its tables, without the times at which they were made."""
    made = {name: data for name, data in contents(folder).items() if not name.endswith((".png", ".svg", ".parquet"))}
    return {name: re.sub(rb"\d{4}-\d\d-\d\d.\d\d:\d\d", b"", data) for name, data in made.items()}


@pytest.mark.slow
@pytest.mark.fault(
    25, "SIGKILL of a search's driver: in its first trial, and when one has ended", "goes on; no ended trial is redone"
)
def test_search(fault: Fault, searched: Path, stores: tuple[Path, Path], tmp_path: Path) -> None:
    config = make_search(stores, tmp_path)
    for reached in (
        lambda: any(one["epoch"] for one in trials_of(config)),
        lambda: any(one["ended"] for one in trials_of(config)),
    ):
        command = SearchCommand(config)
        wait_until(reached, command)
        command.kill()
        fault.times += 1
    ended = [one for one in trials_of(config) if one["ended"]]
    assert 0 < len(ended) < 3
    code, output = SearchCommand(config).end()
    assert code == 0, output
    assert [one for one in trials_of(config) if one["run"] in {known["run"] for known in ended}] == ended
    assert outcome(config) == outcome(searched)
    fault.figure = f"{len(ended)} of 3 trials had ended, not touched; choice and weights as undisturbed, to the bit"


def outcome(config: Path) -> object:
    """What was tried, what came of it to the bit, and what was chosen."""
    tried = [(one["parameters"], one["value"]) for one in trials_of(config)]
    return tried, [weights(run) for run in search_of(config).trials()], search_of(config).read()["choice"]
