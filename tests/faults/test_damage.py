"""Files that come to harm while nobody looks: checkpoints, a run's and a search's own files, Ray's, a tile store's."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.command import Command
from tests.faults.damage import KINDS, delete, empty, flip_a_bit, restored
from tests.faults.ledger import Fault
from tests.faults.small import Small, make_small
from tests.object_store import contents
from tests.runs import wait_for_step
from trainer.__main__ import main
from trainer.checkpoint import MANIFEST, STATE, TENSORS, find_flaw, listed
from trainer.tiles.meta import INDEX, TILES
from trainer.tiles.store import TileStore, write_index

FLIPS = 100
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def killed(stores: tuple[Path, Path], undisturbed: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small run that was killed in its second epoch; not to be changed."""
    small = make_small(stores, tmp_path_factory.mktemp("killed"), undisturbed.storage / "weights")
    command = small.command()
    wait_for_step(small.run, attempt=1, step=11)
    command.process.kill()
    command.end()
    assert small.good_step < undisturbed.good_step
    return small


@pytest.fixture
def found(killed: Small, small_run: Small) -> Small:
    """A copy of it."""
    shutil.copytree(killed.run.path, small_run.run.path)
    return small_run


def truncated_to(share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / TENSORS
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


CHECKPOINT_DAMAGE = {
    **{f"{TENSORS} cut to {share:.0%}": truncated_to(share) for share in (0, 0.01, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999)},
    f"{STATE} deleted": lambda folder: delete(folder / STATE),
    f"{MANIFEST} emptied": lambda folder: empty(folder / MANIFEST),
}


@pytest.mark.slow
@pytest.mark.fault(
    9,
    "the newest checkpoint truncated at 8 lengths, a file of it deleted, its manifest emptied",
    "falls back to the one before; the bad one in quarantine; said",
)
def test_a_damaged_newest_checkpoint_costs_one_interval(
    fault: Fault, found: Small, undisturbed: Small, tmp_path: Path, capfd: Capture
) -> None:
    whole = shutil.copytree(found.run.path, tmp_path / "whole")
    for damage in CHECKPOINT_DAMAGE.values():
        shutil.rmtree(found.run.path)
        shutil.copytree(whole, found.run.path)
        newest, before = listed(found.run)[:2]
        damage(newest.path)
        capfd.readouterr()
        assert found.train() == 0
        said = capfd.readouterr().out
        place = found.run.quarantine_dir / newest.path.name
        assert place.is_dir()
        assert f"checkpoint {newest.path.name} is not used: " in said
        assert f"moved to {place}" in said
        assert f"goes on from {before.path.name}" in said
        assert found.weights == undisturbed.weights
        fault.times += 1
    fault.figure = (
        f"{newest.step - before.step} step redone, bit-identical at last, {fault.times} of {fault.times} times"
    )


@pytest.mark.fault(10, "a random bit flipped in a checkpoint's files", "detected")
def test_every_flipped_bit_is_found(fault: Fault, undisturbed: Small, small_run: Small) -> None:
    seed = random.randrange(10**6)
    print(f"bits are drawn from {seed}")
    draw = random.Random(seed)
    shutil.copytree(undisturbed.run.path, small_run.run.path)
    newest = listed(small_run.run)[0]
    for _ in range(FLIPS):
        file = newest.path / draw.choice((TENSORS, STATE, MANIFEST))
        with restored(file):
            flip_a_bit(file, draw)
            assert find_flaw(newest), f"{file.name}, drawn from {seed}"
        fault.times += 1
    assert find_flaw(newest) is None
    fault.figure = f"{fault.times} of {FLIPS}"


GOES_ON, STOPS = "goes on", "stops, goes on once restored"
RUN_FILES = {
    "run.json": (STOPS, STOPS, STOPS),
    "split.parquet": (STOPS, STOPS, STOPS),
    "attempts/0001.json": (STOPS, STOPS, STOPS),
    "config.yaml": (GOES_ON, GOES_ON, GOES_ON),
    "metrics.jsonl": (GOES_ON, GOES_ON, GOES_ON),
    "best.json": (GOES_ON, GOES_ON, GOES_ON),
    "lock.json": (GOES_ON, GOES_ON, GOES_ON),
}
"""What becomes of a run with each of them truncated, emptied, deleted."""
GOES_ON_OR_STOPS = "goes on from the newest checkpoint, or stops with the file named and the remedy; nothing lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.fault(11, "a run's file", GOES_ON_OR_STOPS)
def test_a_damaged_file_of_a_run_is_made_again_or_named(
    fault: Fault, found: Small, undisturbed: Small, tmp_path: Path, capfd: Capture, name: str
) -> None:
    fault.injected = f"{name} of a killed run truncated, emptied, deleted"
    whole = shutil.copytree(found.run.path, tmp_path / "whole")
    came = []
    for damage in KINDS:
        shutil.rmtree(found.run.path)
        shutil.copytree(whole, found.run.path)
        damage(found.run.path / name)
        came.append(start_on_damage(found, found.run.path / name, whole / name, capfd))
        assert found.run.attempts()[found.run.newest_attempt()]["resumed_step"] > 0
        assert found.weights == undisturbed.weights
        fault.times += 1
    assert came == list(RUN_FILES[name])
    fault.figure = "; ".join(dict.fromkeys(came))


@pytest.mark.fault(11, "the record of the newest of two attempts deleted", GOES_ON_OR_STOPS)
def test_without_the_newest_attempts_record_nothing_is_revived(
    fault: Fault, found: Small, undisturbed: Small, tmp_path: Path, capfd: Capture
) -> None:
    """Without it checkpoints of the first attempt would count again that the second one has replaced."""
    assert found.train() == 0
    file = found.run.attempt_file(2)
    kept = shutil.copy(file, tmp_path)
    found.run.best_file.unlink()  # else it is finished
    file.unlink()
    assert start_on_damage(found, file, Path(kept), capfd) == STOPS
    assert found.weights == undisturbed.weights
    fault.times, fault.figure = 1, STOPS


@pytest.mark.fault(11, "checkpoints/ of a killed run deleted", "no silent start at step 0")
def test_without_its_checkpoints_a_run_does_not_start_over(
    fault: Fault, found: Small, undisturbed: Small, tmp_path: Path, capfd: Capture
) -> None:
    """As before its first epoch has ended, when there is no history but them."""
    aside = found.run.checkpoints_dir.rename(tmp_path / "aside")
    found.run.metrics_file.unlink()
    assert found.train() == 1
    assert "no good checkpoint; start over with --fresh" in capfd.readouterr().err
    aside.rename(found.run.checkpoints_dir)
    assert found.train() == 0
    assert found.weights == undisturbed.weights
    fault.times, fault.figure = 1, STOPS


def start_on_damage(run: Small, file: Path, whole: Path, capfd: Capture) -> str:
    """Starts a run of which a file is damaged; where that stops it, once more with the file restored."""
    before = others(run)
    capfd.readouterr()
    code = run.train()
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    if code == 0:
        return GOES_ON
    assert code == 1
    assert str(file) in said.err
    assert "restore it" in said.err
    assert others(run) == before, "nothing was touched"
    shutil.copy(whole, file)
    assert run.train() == 0
    return STOPS


def others(run: Small) -> dict[str, bytes]:
    """All files of a run but those that each start writes."""
    return {name: data for name, data in contents(run.run.path).items() if name not in ("lock.json", "config.yaml")}


@pytest.mark.slow
@pytest.mark.fault(11, "Ray's own files in a killed run's ray/ truncated, emptied, deleted", "they do not matter")
def test_rays_own_state_does_not_matter(fault: Fault, small_run: Small) -> None:
    flags = ("--scale.workers", "2", "--scale.cpus_per_worker", "1")
    command = Command(small_run.config, *flags)
    wait_for_step(small_run.run, attempt=1, step=3)
    command.process.kill()
    command.end()
    files = [path for path in small_run.run.ray_dir.rglob("*") if path.is_file()]
    assert files
    for file, damage in zip(files, itertools.cycle(KINDS), strict=False):
        damage(file)
    code, output = Command(small_run.config, *flags).end()
    assert code == 0, output
    resumed = small_run.run.attempts()[2]["resumed_step"]
    assert resumed >= 3, "workers may have saved more before they heard of the driver's end"
    assert f"goes on from step-{resumed:08d}" in output
    fault.times += len(files)
    fault.figure = f"went on from step {resumed}"


def flip_a_pixel(store: Path) -> None:
    flip_a_bit_at(store / TILES, -1000)


def flip_a_bit_at(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def lose_rows(store: Path) -> None:
    write_index(pd.read_parquet(store / INDEX).iloc[2:], store)


def shorten(store: Path) -> None:
    (store / TILES).write_bytes((store / TILES).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("what", "damage", "at_open"),
    [
        ("a bit flipped in tiles.npy", flip_a_pixel, False),
        ("two rows missing in the index", lose_rows, True),
        ("tiles.npy a byte shorter", shorten, True),
    ],
)
@pytest.mark.fault(20, "a store's file", "found by `python -m trainer verify`, and at open where that is cheap")
def test_a_damaged_store_is_found(
    fault: Fault,
    stores: tuple[Path, Path],
    small_run: Small,
    tmp_path: Path,
    capfd: Capture,
    what: str,
    damage: Callable[[Path], None],
    at_open: bool,
) -> None:
    fault.injected = what
    store = shutil.copytree(stores[0], tmp_path / "store")
    TileStore.open(store)
    assert main(["verify", str(store)]) == 0
    damage(store)
    assert main(["verify", str(store)]) == 1
    said = capfd.readouterr().err
    assert f"the tile store {store} is damaged" in said
    assert "Pack it again" in said
    if at_open:
        assert small_run.train("--data.tiles", str(store)) == 2
        assert f"data.tiles: the tile store {store} is damaged" in capfd.readouterr().err
        assert not small_run.run.path.exists()
    fault.times += 1
    fault.figure = "by verify" + (" and at open" if at_open else "; not at open, which reads no pixels")
