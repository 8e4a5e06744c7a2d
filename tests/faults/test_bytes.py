"""Every parser that takes a stranger's bytes: it reads them or says what is wrong, in good time, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.collect import collect
from analysis.outcomes import read_outcomes
from tests.conftest import write_config
from tests.faults.ledger import Fault
from tests.faults.strange_bytes import HOSTILE, altered, altered_json, damaged, other_columns
from tests.faults.test_canaries import reseal
from tests.trainer.tiles.tissue import dataset, zipped
from trainer.__main__ import main
from trainer.checkpoint import MANIFEST, STATE, TENSORS, find_flaw, listed, read
from trainer.config import load_config
from trainer.errors import RunError, UsageError
from trainer.predictions import predicted_by, read_predictions
from trainer.rundir import Json, RunDir
from trainer.tiles.meta import INDEX, META, TILES
from trainer.tiles.pack import pack
from trainer.tiles.scan import scan
from trainer.tiles.store import TileStore, verify

FEW, MANY = 30, 200
"""Examples for each kind of bytes of each parser, after those that are always tried."""
LIMIT_S = 20
HEADER = 160
Bytes = st.SearchStrategy[bytes]


class HangError(BaseException):
    """It took too long; no handler of the program's may take it for an error of its own."""


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each file."""
    folder = tmp_path_factory.mktemp("bytes")
    shutil.copytree(stores[1], folder / "store")
    options: dict[str, object] = {"scale.workers": 1, "loop.epochs": 1, "data.external": {}}
    config = write_config(folder / "config.yaml", stores, folder / "runs", options)
    assert main(["train", str(config), "--debug"]) == 0
    (folder / "config.yaml").write_bytes(
        RunDir(folder / "runs" / "small").config_file.read_bytes()
    )  # with every option
    shutil.copyfile(RunDir(folder / "runs" / "small").predictions_file("val"), folder / "predictions.parquet")
    zipped(dataset(folder / "images", each=2, size=8), folder / "images.zip")
    images = [path.relative_to(folder) for path in sorted((folder / "images").rglob("*.png"))]
    rows = [{"path": str(path), "label": path.parent.name, "group": "a", "split": "train"} for path in images]
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet")
    return folder


def checkpoint(folder: Path) -> Path:
    """The newest one, wherever its files have been put."""
    return listed(RunDir(folder / "runs" / "small"))[0].path


def altered_yaml(data: bytes) -> Bytes:
    return altered(yaml.safe_load(data)).map(lambda content: yaml.safe_dump(content).encode())


def resealed(data: bytes) -> Bytes:
    """A manifest with something odd in it, and the right sum of itself."""
    content = json.loads(data)
    del content["sha256"]
    return altered(content).map(lambda odd: json.dumps(with_digest(odd) if isinstance(odd, dict) else odd).encode())


def with_digest(manifest: Json) -> Json:
    return {**manifest, "sha256": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}


def in_header(data: bytes) -> Bytes:
    return damaged(data, HEADER)


def open_store(file: Path) -> None:
    TileStore.open(file.parent)


def verify_store(file: Path) -> None:
    verify(file.parent)


def pack_zip(file: Path) -> None:
    shutil.rmtree(file.with_name("packed"), ignore_errors=True)
    pack(file, file.with_name("packed"), processes=1)


def open_checkpoint(file: Path) -> None:
    (found,) = (one for one in listed(RunDir(file.parents[2])) if one.path == file.parent)
    if find_flaw(found) is None:
        read(found)


def open_resealed(file: Path) -> None:
    reseal(file.parent)
    open_checkpoint(file)


def collect_file(file: Path) -> None:
    collect([file])


Opener = Callable[[Path], object]
PARSERS: dict[str, tuple[tuple[Callable[[bytes], Bytes], ...], tuple[Opener, ...]]] = {
    "config.yaml": ((damaged, altered_yaml), (load_config,)),
    "manifest.csv": ((damaged,), (scan,)),
    "manifest.parquet": ((damaged, other_columns), (scan,)),
    "images.zip": ((damaged,), (pack_zip,)),
    f"store/{META}": ((damaged, altered_json), (open_store, verify_store)),
    f"store/{INDEX}": ((damaged, other_columns), (open_store, verify_store)),
    f"store/{TILES}": ((in_header,), (open_store, verify_store)),
    f"checkpoint/{MANIFEST}": ((damaged, resealed), (open_checkpoint,)),
    f"checkpoint/{STATE}": ((damaged,), (open_resealed,)),
    f"checkpoint/{TENSORS}": ((in_header,), (open_resealed,)),
    "predictions.parquet": (
        (damaged, other_columns),
        (collect_file, read_outcomes, read_predictions, predicted_by),
    ),
}
"""Each file: how a stranger may have made it, and what opens it."""


@pytest.mark.fault(27, "bytes of a stranger", "read, or refused in words of ours; no other error, no hang")
@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PARSERS)
def test_a_strangers_bytes_are_read_or_refused(fault: Fault, folder: Path, name: str, examples: int) -> None:
    fault.injected += f": {name}"
    strange, openers = PARSERS[name]
    place, _, last = name.rpartition("/")
    file = (checkpoint(folder) if place == "checkpoint" else folder / place) / last
    whole, refused, slowest = file.read_bytes(), 0, 0.0

    def examine(data: bytes) -> None:
        nonlocal refused, slowest
        file.write_bytes(data)
        began = time.monotonic()
        with limited():
            for opener in openers:
                try:
                    opener(file)
                except (UsageError, RunError):
                    refused += 1
        slowest = max(slowest, time.monotonic() - began)
        fault.times += 1

    @settings(
        max_examples=examples * len(strange),
        derandomize=examples == FEW,  # what must pass before anything lands does not depend on chance
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of([make(whole) for make in strange]))
    def check(data: bytes) -> None:
        examine(data)

    manifest = file.with_name(MANIFEST)
    sums = manifest.read_bytes() if manifest.exists() else b""
    try:
        for data in HOSTILE:
            examine(data)
        check()
    finally:
        file.write_bytes(whole)
        if sums:
            manifest.write_bytes(sums)
    fault.figure = f"{refused} refusals, {slowest:.2f} s at most"
