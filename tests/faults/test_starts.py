"""One run name, started twice: at once, where a killed start has left its lock, afresh, and beside one that trains."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.command import Command, wait_until
from tests.conftest import write_config
from tests.faults.ledger import Fault
from tests.faults.starts import Fork, Place, end_all, few_tiles
from tests.runs import weights
from tests.trainer.test_launch import OPTIONS
from trainer.checkpoint import listed
from trainer.rundir import RunDir

ONE_EPOCH: dict[str, object] = {"loop.epochs": 1}
OF_ITS_OWN = re.compile(r"\.lock\.json\.[0-9a-f]{32}\.tmp")
"""With which a start asks for the lock, and which it takes away again."""
REQUEST = {("link", "lock.json")}
"""What it tries then. It fails where there is one."""
TAKEOVER = {*REQUEST, ("remove", "lock.json")}
REFUSED = ("is being trained by process", "was started twice in the same moment")


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    end_all()


def tell(forks: tuple[Fork, Fork]) -> tuple[Fork, Fork, str]:
    """Who trained, who did not, and what that one said."""
    ends = [fork.end() for fork in forks]
    (trained,) = [fork for fork, (code, _) in zip(forks, ends, strict=True) if code == 0]
    (other,) = [(fork, said) for fork, (code, said) in zip(forks, ends, strict=True) if code == 1]
    return trained, *other


def names(folder: Path) -> set[str]:
    """But for the times in the names of event files."""
    return {re.sub(r"tfevents\.\d+", "tfevents", str(path.relative_to(folder))) for path in folder.rglob("*")}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Of everything in a folder, when it was changed, and its content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return few_tiles(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def alone(few: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was started once."""
    place = Place(tmp_path_factory.mktemp("alone"), few, ONE_EPOCH)
    assert place.train("one").end()[0] == 0
    return place.run


def check_one_trained(
    place: Place, trained: Fork, other: Fork, alone: RunDir, allowed: Collection[tuple[str, str]] = REQUEST
) -> None:
    """The run is what it would be with one start, and the other start did nothing in it but ask for the lock."""
    newest = place.run.attempts()[place.run.newest_attempt()]
    assert newest["pid"] == trained.pid
    assert weights(place.run) == weights(alone)
    assert not place.run.lock_file.exists()
    in_run = [(act, path.name) for act, path in other.changes() if place.run.path in path.parents]
    assert {(act, name) for act, name in in_run if not OF_ITS_OWN.fullmatch(name)} <= allowed


@pytest.mark.slow
@pytest.mark.fault(15, "one run name started by two jobs at once", "exactly one trains; the other touches nothing")
def test_of_two_starts_at_once_one_trains(fault: Fault, few: tuple[Path, Path], tmp_path: Path, alone: RunDir) -> None:
    for number in range(20):
        place = Place(tmp_path, few, ONE_EPOCH, f"run{number}")
        trained, other, said = tell(place.train_twice_at_once())
        assert f"is being trained by process {trained.pid}" in said
        check_one_trained(place, trained, other, alone)
        assert list(place.run.attempts()) == [1]
        assert names(place.run.path) == names(alone.path)
        shutil.rmtree(place.run.path)
        fault.times += 1
    fault.figure = (
        f"one trained in {fault.times} of {fault.times}, weights as with one start; 0 files touched by the other"
    )


@pytest.mark.slow
@pytest.mark.fault(
    15, "the same, where a killed start has left its lock", "exactly one takes over; the other touches nothing"
)
def test_of_two_that_take_a_dead_lock_over_one_trains(
    fault: Fault, few: tuple[Path, Path], tmp_path: Path, alone: RunDir
) -> None:
    twice = 0
    for number in range(10):
        place = Place(tmp_path, few, ONE_EPOCH, f"run{number}")
        killed = place.train("killed")
        wait_until(lambda place=place: place.run.newest_attempt() == 1, "its first attempt")  # type: ignore[misc]
        killed.kill()
        assert place.run.lock_file.exists()
        trained, other, said = tell(place.train_twice_at_once())
        assert any(words in said for words in REFUSED), said
        twice += REFUSED[1] in said
        check_one_trained(place, trained, other, alone, TAKEOVER)
        shutil.rmtree(place.run.path)
        fault.times += 1
    fault.figure = f"one trained in {fault.times} of {fault.times}; both had removed the dead lock in {twice}"


@pytest.mark.slow
@pytest.mark.fault(15, "the same with --fresh, where there is a run", "exactly one trains; the old run is kept whole")
def test_of_two_fresh_starts_at_once_one_trains(
    fault: Fault, few: tuple[Path, Path], tmp_path: Path, alone: RunDir
) -> None:
    for number in range(6):
        place = Place(tmp_path, few, ONE_EPOCH, f"run{number}")
        shutil.copytree(alone.path, place.run.path)
        before = state(place.run.path)
        trained, _, said = tell(place.train_twice_at_once("--fresh"))
        assert any(words in said for words in REFUSED), said
        assert place.run.attempts()[1]["pid"] == trained.pid
        assert weights(place.run) == weights(alone)
        asides = list(place.storage.glob(f"{place.name}.*"))
        assert any({**state(path), ".": before["."]} == before for path in asides), asides
        assert names(place.run.path) == names(alone.path)
        shutil.rmtree(place.run.path)
        fault.times += 1
    fault.figure = f"one trained in {fault.times} of {fault.times}; the old run whole in {fault.times} of {fault.times}"


@pytest.mark.fault(15, "a start beside one that trains", "refused; it changes no file, time or listing")
def test_a_start_beside_one_that_trains_changes_nothing(fault: Fault, few: tuple[Path, Path], tmp_path: Path) -> None:
    """The one that trains is stopped meanwhile, so that every change would be the other's."""
    place = Place(tmp_path, few, {"loop.checkpoint_every": 1, "loop.epochs": 4})
    trains = place.train("one")
    for step in (1, 4):
        wait_until(lambda step=step: any(c.step >= step for c in listed(place.run)), "a step")  # type: ignore[misc]
        trains.stop()
        before = state(place.storage)
        began = time.monotonic()
        code, said = place.train("other").end()
        took = time.monotonic() - began
        assert code == 1
        assert f"is being trained by process {trains.pid}" in said
        after = state(place.storage)
        # The request for the lock, which is made in the run directory, leaves a time there, and nothing else.
        assert {**after, place.name: before[place.name]} == before
        trains.wake()
        fault.times += 1
    assert trains.end()[0] == 0
    assert list(place.run.attempts()) == [1]
    fault.figure = f"{len(before)} files and folders as they were; refused in {took:.1f} s"


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.fault(15, "two jobs at once over Ray", "exactly one trains; the other starts no Ray")
def test_of_two_starts_at_once_over_ray_one_trains(fault: Fault, stores: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(3):
        options = {**OPTIONS, "loop.epochs": 1, "run.name": f"run{number}"}
        config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options)
        run = RunDir(tmp_path / "runs" / f"run{number}")
        commands = (Command(config), Command(config))
        ends = [command.end() for command in commands]
        assert sorted(code for code, _ in ends) == [0, 1], ends
        (said,) = [said for code, said in ends if code == 1]
        (holder,) = [command.process.pid for command, (code, _) in zip(commands, ends, strict=True) if code == 0]
        assert f"is being trained by process {holder}" in said
        assert list(run.attempts()) == [1]
        assert json.loads(run.best_file.read_text())["epoch"] == 1
        fault.times += 1
    fault.figure = f"one trained in {fault.times} of {fault.times}"
