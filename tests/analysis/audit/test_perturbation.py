from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from analysis.audit.findings import NOTE, WARNING
from analysis.audit.perturbation import PERTURBATIONS, Perturbation, _chosen, judge_perturbation, passes, perturb
from analysis.audit.sets import sets_of_run
from analysis.collect import read_run
from tests.analysis.made_runs import CLASSES, write_model
from trainer.config import AugmentSection
from trainer.rundir import RunDir
from trainer.tiles.augment import evaluation_batch
from trainer.tiles.colour import HED

TILES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_brightness_is_a_factor_of_every_level() -> None:
    brighter = Perturbation("brightness", 1.2).of(TILES).numpy()
    assert np.abs(brighter - np.clip(TILES * 1.2, 0, 255)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("stain", "place"), [("haematoxylin", 0), ("eosin", 1)])
def test_a_stain_is_a_factor_of_its_optical_density(stain: str, place: int) -> None:
    changed = Perturbation(stain, 0.7).of(TILES).numpy()
    amounts = -np.log10(np.maximum(TILES, 1) / 255) @ np.linalg.inv(HED)
    amounts[..., place] *= 0.7
    expected = np.clip(255 * 10 ** -(amounts @ HED), 0, 255)
    assert np.abs(changed - expected).max() <= 0.51


def test_as_they_are_tiles_stay_as_they_are() -> None:
    assert np.array_equal(PERTURBATIONS[0].of(TILES).numpy(), TILES)


@pytest.fixture
def small_run(run: RunDir) -> RunDir:
    """The run with a model and an input of 32 px."""
    run.config_file.write_text(run.config_file.read_text().replace("64", "32"))
    return run


def test_scores_are_those_of_the_model_on_recoloured_validation_tiles(small_run: RunDir) -> None:
    model = write_model(small_run, len(CLASSES))
    read = read_run(small_run.path)
    sets = sets_of_run(read)
    done: list[int] = []
    table = perturb(read, sets, 1000, done.append)
    rows = sets.tiles[sets.of("val")]
    assert table["tiles"].unique() == [15]
    assert sum(done) == passes(sets, 1000) == 9 * 15
    for place in (0, 2, 6):
        batch = PERTURBATIONS[place].of(sets.stores[0].tiles[rows["row"].to_numpy()])
        with torch.inference_mode():
            predicted = model(evaluation_batch(batch, AugmentSection(input_size=32))).argmax(dim=1).numpy()
        expected = balanced_accuracy_score(rows["code"], predicted)
        assert table["balanced accuracy"].iloc[place] == pytest.approx(expected)
    assert table["changed"].iloc[0] == 0


def test_the_same_few_tiles_are_drawn_equally_from_the_classes(small_run: RunDir) -> None:
    sets = sets_of_run(read_run(small_run.path))
    chosen = _chosen(sets, 6)
    assert sets.of("val")[chosen].all()
    assert np.bincount(sets.tiles["code"].to_numpy()[chosen]).tolist() == [2, 2, 2]
    assert np.array_equal(_chosen(sets, 6), chosen)
    assert passes(sets, 6) == 54


def test_without_validation_tiles_there_is_nothing_to_recolour(run: RunDir) -> None:
    pd.read_parquet(run.split_file).assign(split="train").to_parquet(run.split_file)
    read = read_run(run.path)
    table = perturb(read, sets_of_run(read))
    assert table.empty
    assert list(judge_perturbation(table)) == []


def test_a_fall_is_a_warning() -> None:
    scores = [0.9, 0.70, 0.88, 0.89, 0.9, 0.9, 0.9, 0.88, 0.89]
    table = pd.DataFrame(
        {
            "perturbation": [each.what for each in PERTURBATIONS],
            "factor": [each.factor for each in PERTURBATIONS],
            "tiles": 200,
            "balanced accuracy": scores,
            "changed": [0.0, 0.25, *[0.02] * 7],
        }
    )
    found = list(judge_perturbation(table))
    assert [finding.level for finding in found] == [WARNING, NOTE, NOTE]
    assert found[0].text == (
        "with 0.8 or 0.9 or 1.1 or 1.2 times the brightness the model's balanced accuracy on 200 validation tiles is "
        "at least 0.70 (as they are: 0.90); the lowest is at 0.8, where 25% of the tiles get another class"
    )
