"""Several models together, whatever the order in which each keeps its classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.aggregate import ensemble, of_other_tiles
from analysis.collect import collect
from analysis.compare import compare
from analysis.report.cells import expanded
from tests.analysis.made_runs import CLASSES, skewed_logits, write_predictions
from trainer.rundir import RunDir
from trainer.temperature import softmax


def second(run: RunDir, name: str, order: list[int]) -> tuple[RunDir, np.ndarray]:
    """A copy of the run with other predictions outside, its classes in this order; and the logits in the run's."""
    other = RunDir(run.path.with_name(name))
    shutil.copytree(run.path, other.path)
    classes = [CLASSES[place] for place in order]
    identity = json.loads(run.identity_file.read_text()) | {"run": name, "classes": classes}
    other.identity_file.write_text(json.dumps(identity))
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()
    logits = skewed_logits(stored["label"], CLASSES, 1.0, seed=9)
    write_predictions(other.predictions_file("elsewhere"), stored, logits[:, order], classes)
    return other, logits


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_an_ensemble_averages_what_is_said_of_the_same_class(run: RunDir, order: list[int]) -> None:
    other, logits = second(run, "second", order)
    first = np.stack(pq.read_table(run.predictions_file("elsewhere")).to_pandas()["logits"])
    together = ensemble(collect([run.path, other.path]))
    assert together is not None
    assert together.classes == CLASSES
    [outside] = [each for each in together.predictions if each.split == "elsewhere"]
    np.testing.assert_allclose(outside.probabilities, (softmax(first) + softmax(logits)) / 2, rtol=1e-6)
    assert [CLASSES[label] for label in outside.labels] == outside.table["label"].tolist()


def test_a_comparison_does_not_depend_on_the_order_of_classes(run: RunDir) -> None:
    found = []
    for name, order in (("plain", [0, 1, 2]), ("permuted", [2, 0, 1])):
        other, _ = second(run, name, order)
        [outside] = [each for each in compare(collect([run.path, other.path])) if each.split == "elsewhere"]
        found.append(outside)
        shutil.rmtree(other.path)
    for frame in ("scores", "disagreements", "classes"):
        plain, permuted = (expanded(getattr(each, frame)) for each in found)
        pd.testing.assert_frame_equal(permuted.rename(columns=lambda name: name.replace("permuted", "plain")), plain)
    assert len(found[0].disagreements)


def test_another_programs_predictions_of_the_same_tiles_join_an_ensemble(run: RunDir, tmp_path: Path) -> None:
    stored = pq.read_table(run.predictions_file("elsewhere")).to_pandas()[::-1]
    write_predictions(tmp_path / "theirs.parquet", stored, np.stack(stored["logits"])[:, ::-1], CLASSES[::-1])
    models = collect([run.path, tmp_path / "theirs.parquet"])
    together = ensemble(models)
    assert together is not None
    [outside] = together.predictions
    np.testing.assert_allclose(outside.probabilities, models[0].predictions[1].probabilities, rtol=1e-6)


def test_a_set_of_other_tiles_is_named(run: RunDir) -> None:
    other, _ = second(run, "second", [0, 1, 2])
    models = collect([run.path, other.path])
    assert of_other_tiles(models) == []
    stored = pq.read_table(other.predictions_file("val")).to_pandas()[1:]
    write_predictions(other.predictions_file("val"), stored, np.stack(stored["logits"]), CLASSES)
    [said] = of_other_tiles(collect([run.path, other.path]))
    assert said.startswith("val: not all models have the same tiles there")
