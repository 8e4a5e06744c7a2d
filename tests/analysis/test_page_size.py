"""A page stays small enough to be sent, however much stands on it."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import figures
from analysis.collect import collect
from analysis.report.report import write_report
from analysis.report.writer import Folder, Room
from tests.analysis.made_runs import skewed_logits, write_model, write_predictions, write_run, write_store
from trainer.rundir import RunDir

MOST_BYTES = 5_000_000


@pytest.mark.parametrize(("outline", "kind"), [(1_000_000, "image/svg+xml"), (1_000, "image/webp")])
def test_a_figure_beyond_its_room_is_pixels_on_the_page_and_both_beside_it(
    tmp_path: Path, outline: int, kind: str
) -> None:
    matrix = np.array([[5, 1], [0, 7]])
    folder = Folder(tmp_path, Room(6, 64, outline))
    uri = folder.picture(figures.confusion(matrix, ["A", "B"], "a matrix"), "matrix", "a matrix").uri
    assert uri.startswith(f"data:{kind};base64,")
    shown = base64.b64decode(uri.partition(",")[2])
    pixels = np.asarray(Image.open(tmp_path / "matrix.png").convert("RGB"))
    if kind == "image/webp":
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")), pixels)
    else:
        assert shown == (tmp_path / "matrix.svg").read_bytes()


def drawn_run(path: Path, classes: int, stores: list[Path]) -> RunDir:
    """A run with maps, of a store and external ones whose tiles are as rough as tissue, which is smaller than noise."""
    names = [f"C{number:02d}" for number in range(classes)]
    labels = names * 6
    rough = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    tiles = rough.repeat(2, axis=1).repeat(2, axis=2)
    indices = [write_store(store, labels, tiles) for store in stores]
    split = ["val"] * len(labels)
    external = {store.name: store for store in stores[1:]}
    run = write_run(path, stores[0], split, classes=names, external=external)
    for place, (name, index) in enumerate(zip(["val", *external], indices, strict=True)):
        logits = skewed_logits(index["label"], names, 2.0, place)
        write_predictions(run.predictions_file(name), index, logits, names)
    write_model(run, classes)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "classes", "sets"), [(3, 9, 2), (1, 50, 2), (1, 50, 4)])
def test_many_runs_classes_and_sets_fit_on_a_page(tmp_path: Path, runs: int, classes: int, sets: int) -> None:
    stores = [tmp_path / f"store-{number}" for number in range(sets)]
    first = drawn_run(tmp_path / "runs" / "run-0", classes, stores)
    paths = [first.path]
    for number in range(1, runs):
        paths.append(first.path.with_name(f"run-{number}"))
        shutil.copytree(first.path, paths[-1])
        identity = json.loads(first.identity_file.read_text()) | {"run": paths[-1].name}
        RunDir(paths[-1]).identity_file.write_text(json.dumps(identity))
    report = write_report(collect(paths), tmp_path / "out")
    assert report.page.stat().st_size < MOST_BYTES
    assert ("not every tile is here" in report.page.read_text()) == (classes * sets >= 100)
