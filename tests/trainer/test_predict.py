"""Predictions of tiles that a run has not seen: against training's own, from every kind of source, stopped, refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from analysis.collect import read_predictions as read_for_page
from analysis.outcomes import read_outcomes
from tests.conftest import REPOSITORY
from trainer.__main__ import main
from trainer.checkpoint import load_best_model
from trainer.predictions import facts_of
from trainer.rundir import PartsDir, RunDir, read_json, read_json_lines, write_json
from trainer.tiles.augment import evaluation_batch
from trainer.tiles.pack import PackOptions, pack
from trainer.tiles.store import TileStore
from trainer.trained import open_trained

Predict = Callable[..., int]
MANY = 300
"""Tiles of several parts: of one batch, then of four."""


@pytest.fixture(autouse=True)
def _looks_are_put_back(trained_run: RunDir) -> object:
    """A look is the one thing that is written into a run."""
    before = trained_run.evaluations_file.read_bytes()
    yield
    trained_run.evaluations_file.write_bytes(before)


def predict(run: RunDir, tiles: Path, out: Path, *flags: str) -> int:
    return main(["predict", str(run.path), str(tiles), "--out", str(out), "--debug", "--scale.gpu", "false", *flags])


def read(file: Path) -> tuple[pd.DataFrame, np.ndarray]:
    frame = pq.read_table(file).to_pandas()
    return frame, np.stack(frame["logits"].to_list())


def write_images(folder: Path, tiles: np.ndarray, names: list[str]) -> Path:
    """Tiles (N, H, W, 3) as files."""
    for name, tile in zip(names, tiles, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of so many images, in no class folder."""
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 256, (MANY, 32, 32, 3), dtype=np.uint8)
    return write_images(tmp_path_factory.mktemp("many"), tiles, [f"tile-{n:03d}.png" for n in range(MANY)])


@pytest.fixture(scope="module")
def undisturbed(trained_run: RunDir, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of them where nothing happens."""
    out = tmp_path_factory.mktemp("undisturbed") / "out.parquet"
    assert predict(trained_run, many, out) == 0
    assert not PartsDir.of(out).path.exists()
    return out


def test_they_are_trainings_own_and_every_reader_takes_them(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out.parquet"
    assert predict(trained_run, stores[1], out) == 0
    said = capsys.readouterr().out
    (frame, logits), (own, own_logits) = read(out), read(trained_run.predictions_file("elsewhere"))
    assert np.allclose(logits, own_logits, rtol=0, atol=1e-6)
    for name in ("tile_id", "path", "group", "label"):
        assert list(frame[name]) == list(own[name])
    trained = open_trained(trained_run.path)
    facts = facts_of(out) or {}
    assert json.loads(facts["classes"]) == list(trained.classes)
    assert facts["checkpoint"] == trained.checkpoint.path.name
    assert facts["run"] == "small"
    temperature = json.loads(facts["temperature"])
    assert temperature == read_json(trained_run.best_file)["temperature"]
    probabilities = (torch.from_numpy(logits).double() / temperature).softmax(1).numpy()
    assert np.allclose(frame["probability"], probabilities.max(axis=1), atol=1e-6)
    assert list(frame["predicted"]) == [trained.classes[place] for place in probabilities.argmax(axis=1)]
    page = read_for_page(out, "elsewhere", "external set", trained.classes)
    assert len(page.labels) == len(read_outcomes(out).labels) == len(frame)
    right = (frame["predicted"] == frame["label"]).mean()
    assert f"of 27 tiles of known class {right:.1%} are right" in said
    (*_, look) = read_json_lines(trained_run.evaluations_file)
    assert (look["split"], look["tiles"], look["by"]) == ("elsewhere", 27, "predict")


def test_the_same_from_a_folder_a_zip_a_manifest_and_a_store(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    known = TileStore.open(stores[1])
    names = [f"{label}/{name}.png" for label, name in zip(known.index["label"], known.index["tile_id"], strict=True)]
    folder = write_images(tmp_path / "folder", known.tiles, names)
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", folder))
    pack(folder, tmp_path / "store", processes=1)
    manifest = folder / "manifest.csv"
    found = {}
    for source in (folder, zipped, tmp_path / "store"):
        assert predict(trained_run, source, tmp_path / f"{source.name}.parquet") == 0
        found[source.name] = read(tmp_path / f"{source.name}.parquet")
    with manifest.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *((name, name.split("/")[0]) for name in names)])
    assert predict(trained_run, manifest, tmp_path / "manifest.parquet") == 0
    first, logits = read(tmp_path / "manifest.parquet")
    for frame, others in found.values():
        assert frame.drop(columns="logits").equals(first.drop(columns="logits"))
        assert np.array_equal(others, logits)
    own, own_logits = read(trained_run.predictions_file("elsewhere"))
    placed = pd.Series(range(len(own)), index=own["tile_id"])[list(first["tile_id"])]
    assert np.allclose(logits, own_logits[placed], rtol=0, atol=1e-5)


def test_tiles_without_labels_have_none(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flat, in folders of slides, in a manifest without labels, and in a store packed so; nothing is recorded."""
    looks = trained_run.evaluations_file.read_bytes()
    tiles = TileStore.open(stores[1]).tiles
    flat = write_images(tmp_path / "flat", tiles, [f"{place}.png" for place in range(len(tiles))])
    slides = write_images(tmp_path / "slides", tiles, [f"slide-{n % 3:02d}/{n}.png" for n in range(len(tiles))])
    assert main(["prepare", str(slides), str(tmp_path / "store"), "--unlabelled", "--strict"]) == 0
    said = capsys.readouterr().out
    assert "(class unknown)        27" in said
    assert "slide-0" not in said
    listed = slides / "listed.csv"
    listed.write_text("path,group\n" + "".join(f"slide-{n % 3:02d}/{n}.png,slide-{n % 3}\n" for n in range(len(tiles))))
    for source in (flat, slides, listed, tmp_path / "store"):
        out = tmp_path / f"{source.name}.parquet"
        assert predict(trained_run, source, out) == 0
        frame, logits = read(out)
        assert frame["label"].isna().all()
        assert len(frame) == len(tiles)
        assert np.isfinite(logits).all()
        assert ("folders slide-00, slide-01 and slide-02 are no classes" in capsys.readouterr().out) == (
            source == slides
        )
    assert set(read(tmp_path / "listed.csv.parquet")[0]["group"]) == {"slide-0", "slide-1", "slide-2"}
    assert trained_run.evaluations_file.read_bytes() == looks
    assert main(["train", str(write_training_on(tmp_path / "store", trained_run, tmp_path)), "--debug"]) == 2
    assert "of unknown class, from which nothing can be learned" in capsys.readouterr().err


def write_training_on(store: Path, run: RunDir, folder: Path) -> Path:
    config = folder / "training.yaml"
    lines = run.config_file.read_text().splitlines()
    config.write_text("\n".join(f"  tiles: {store}" if line.startswith("  tiles:") else line for line in lines))
    return config


def test_killed_it_goes_on_and_makes_the_same_file(
    trained_run: RunDir, many: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    killed = start(trained_run, many, out, "--debug")
    wait_for_parts(out, 1)
    killed.kill()
    killed.wait()
    assert not out.exists()
    (kept,) = PartsDir.of(out).parts()
    assert predict(trained_run, many, out) == 0
    assert f"goes on after {len(kept)} of 300 tiles" in capsys.readouterr().out
    assert_same(out, undisturbed)
    assert predict(trained_run, many, out) == 0
    assert "nothing to do" in capsys.readouterr().out


def assert_same(out: Path, expected: Path) -> None:
    """Every row, to the bit, and what they come from."""
    assert pq.read_table(out).equals(pq.read_table(expected))
    facts, others = ({**(facts_of(file) or {}), "code": ""} for file in (out, expected))  # a commit may come between
    assert facts == others


def start(run: RunDir, tiles: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "trainer", "predict", str(run.path), str(tiles), "--out", str(out)]
    return subprocess.Popen([*command, "--scale.gpu", "false", *flags], cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def wait_for_parts(out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(PartsDir.of(out).parts()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stopped_and_damaged_it_goes_on_and_makes_the_same_file(
    trained_run: RunDir, many: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    parts = PartsDir.of(out)

    def interrupt() -> None:
        wait_for_parts(out, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    assert predict(trained_run, many, out) == 75
    assert "the same command goes on" in capsys.readouterr().out
    assert not out.exists()
    assert not parts.lock_file.exists()
    (file,) = parts.parts().values()
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    file.write_bytes(damaged)
    assert predict(trained_run, many, out) == 0
    said = capsys.readouterr().out
    assert f"{file.name} is damaged" in said
    assert "begins, on 1 worker" in said
    assert_same(out, undisturbed)


def test_over_ray_on_two_workers_it_is_the_same(
    trained_run: RunDir, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    process = start(trained_run, many, out, "--scale.workers", "2", "--scale.cpus_per_worker", "1")
    assert process.wait(timeout=300) == 0
    (frame, logits), (own, expected) = read(out), read(undisturbed)
    assert list(frame["tile_id"]) == list(own["tile_id"])
    assert np.allclose(logits, expected, rtol=0, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.parquet"]


def with_scale(run: RunDir, name: str, mpp: float) -> RunDir:
    """The same run, whose tiles had this many microns per pixel."""
    other = RunDir(run.path.with_name(name))
    shutil.copytree(run.path, other.path)
    identity = run.read_identity()
    identity["data"]["tiles"]["mpp"] = mpp
    write_json(other.identity_file, identity)
    return other


def test_another_size_or_scale_is_refused_unless_resampled(
    trained_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three quarters of 96 px at 0.25 um/px show what 32 px at 0.75 um/px do."""
    run = with_scale(trained_run, "scaled", 0.5)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    folder = write_images(tmp_path / "tiles", tiles, [f"{n}.png" for n in range(5)])
    out = tmp_path / "out.parquet"
    assert predict(run, folder, out, "--mpp", "0.25") == 2
    said = capsys.readouterr().err
    assert "96 x 96 px at 0.25 um/px" in said
    assert "32 x 32 px at 0.5 um/px" in said
    assert "--resample" in said
    assert not list(tmp_path.glob("out*")), "nothing was begun"

    assert predict(run, folder, out, "--mpp", "0.25", "--resample") == 0
    assert "of each the middle 64 x 64 px" in capsys.readouterr().out
    frame, logits = read(out)
    seen = np.stack([tiles[int(Path(path).stem)][16:80, 16:80] for path in frame["path"]])
    with torch.no_grad():
        images = evaluation_batch(torch.from_numpy(seen), open_trained(run.path).config.augment)
        expected = load_best_model(run)(images).numpy()
    assert np.allclose(logits, expected, atol=1e-4)

    assert predict(run, folder, tmp_path / "less.parquet", "--mpp", "0.125", "--resample") == 2
    assert "less tissue" in capsys.readouterr().err
    assert predict(trained_run, folder, tmp_path / "whole.parquet") == 2
    assert "96 x 96 px (microns per pixel unknown)" in capsys.readouterr().err
    assert predict(trained_run, folder, tmp_path / "whole.parquet", "--resample") == 0
    wide = write_images(tmp_path / "wide", tiles[:, :48], [f"{n}.png" for n in range(5)])
    assert predict(trained_run, wide, tmp_path / "wide.parquet", "--resample") == 2
    assert "another shape" in capsys.readouterr().err
    store = pack(folder, tmp_path / "store", PackOptions(mpp=0.5, labels="none"), processes=1).store
    assert predict(run, store, tmp_path / "store.parquet", "--mpp", "0.25") == 2
    assert "says that it has 0.5" in capsys.readouterr().err


def test_a_stain_far_from_trainings_is_said(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = TileStore.open(stores[0]).tiles
    yellow = (tiles * np.array([1, 0.95, 0.7])).astype(np.uint8)
    for name, pixels in (("own", tiles), ("yellow", yellow)):
        folder = write_images(tmp_path / name, pixels, [f"{n}.png" for n in range(len(tiles))])
        assert predict(trained_run, folder, tmp_path / f"{name}.parquet") == 0
        said = capsys.readouterr().out
        assert ("the stain is far from training's" in said) == (name == "yellow")
        assert ("are outside the range of 99 % of the training tiles in the share of blue" in said) == (
            name == "yellow"
        )
        stain = json.loads((facts_of(tmp_path / f"{name}.parquet") or {})["stain"])
        assert (stain["blue"]["outside"] > 0.2) == (name == "yellow")
        assert ("equal pixels" in said) == (name == "own")


def test_the_training_tiles_twin_is_said(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, is_twin in ((f"{stores[0].name}-nonorm.zip", True), ("other.zip", False)):
        pixels = TileStore.open(stores[1]).tiles[:4]
        folder = write_images(tmp_path / name.removesuffix(".zip"), pixels, [f"{n}.png" for n in range(4)])
        archive = Path(shutil.make_archive(str(folder), "zip", folder))
        assert predict(trained_run, archive, tmp_path / f"{name}.parquet") == 0
        assert (f"warning: {archive} is {stores[0]} with other colours" in capsys.readouterr().out) is is_twin


def test_a_run_from_before_it_was_calibrated_predicts_and_says_so(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(trained_run.path.with_name("early"))
    shutil.copytree(trained_run.path, run.path)
    best, identity = read_json(run.best_file), run.read_identity()
    write_json(run.best_file, {key: value for key, value in best.items() if key not in ("temperature", "stain")})
    del identity["data"]["tiles"]["tile_size"]
    write_json(run.identity_file, identity)
    assert predict(run, stores[1], tmp_path / "out.parquet") == 0
    said = capsys.readouterr().out
    assert "probabilities are not calibrated, and stains not compared" in said
    assert "far from training's" not in said
    frame, logits = read(tmp_path / "out.parquet")
    assert (facts_of(tmp_path / "out.parquet") or {})["temperature"] == "null"
    assert np.allclose(frame["probability"], torch.from_numpy(logits).softmax(1).amax(1).numpy(), atol=1e-6)
    assert open_trained(run.path).tile_size == (32, 32), "its store still says so"


def test_other_class_names_are_mapped_or_scored_apart(
    trained_run: RunDir, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = TileStore.open(stores[1])
    theirs = {"STR": "STRO", "BACK": "UNK"}
    labels = [theirs.get(label, label) for label in known.index["label"]]
    names = [f"{label}/{n}.png" for n, label in enumerate(labels)]
    folder = write_images(tmp_path / "tiles", known.tiles, names)
    out = tmp_path / "out.parquet"
    assert predict(trained_run, folder, out, "--class-map", "STRO=STR") == 0
    said = capsys.readouterr().out
    assert "3 tiles labelled UNK, which is no class of the run" in said
    assert "apart: 3 tiles labelled UNK" in said
    assert "of 24 tiles of known class" in said
    frame, _ = read(out)
    expected = {"STRO": "STR"}
    assert [expected.get(Path(path).parent.name, Path(path).parent.name) for path in frame["path"]] == list(
        frame["label"]
    )
    for given, words in (
        (["--class-map", "STRX=STR"], ["no tiles are labelled STRX (did you mean STRO?)"]),
        (["--class-map", "STRO=STX", "--class-map", "UNK=Z"], ["no class STX (did you mean STR?)", "no class Z"]),
        (["--class-map", "STRO"], ["write THEIRS=OURS"]),
    ):
        assert predict(trained_run, folder, tmp_path / "wrong.parquet", *given) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not list(tmp_path.glob("wrong*")), "nothing was begun"


def test_bad_input_gets_one_clear_message(
    trained_run: RunDir, many: Path, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    (tmp_path / "mine.parquet").write_text("mine")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path, Path, Path, list[str], str]] = [
        (tmp_path / "no-run", many, out, [], "is not a run directory"),
        (trained_run.path, tmp_path / "nothing", out, [], "does not exist"),
        (trained_run.path, tmp_path / "empty", out, [], "holds no images"),
        (trained_run.path, many, trained_run.path / "out.parquet", [], "lies in the run's directory"),
        (trained_run.path, many, tmp_path, [], "is a folder"),
        (trained_run.path, many, tmp_path / "out.csv", [], "is named *.parquet"),
        (trained_run.path, many, tmp_path / "mine.parquet", [], "comes from elsewhere"),
        (trained_run.path, many, out, ["--scale.workerz", "2"], "did you mean scale.workers?"),
        (trained_run.path, many, out, ["--mpp", "-1"], "microns per pixel above 0"),
    ]
    for run, tiles, place, flags, words in cases:
        assert predict(RunDir(run), tiles, place, *flags) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert words in said
        assert not PartsDir.of(place).path.exists()
    assert (tmp_path / "mine.parquet").read_text() == "mine"
    assert predict(trained_run, stores[1], out) == 0
    assert predict(trained_run, many, out) == 2
    assert "is of another tiles (was external, is many0" in capsys.readouterr().err
