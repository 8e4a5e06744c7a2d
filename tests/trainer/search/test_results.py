"""What a search's figures are worth."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from tests.conftest import write_config
from tests.trainer.search.searches import (
    BASE,
    Command,
    search_of,
    trials_of,
)
from trainer.predictions import read_predictions
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_labels_that_mean_nothing_are_found_out(tmp_path: Path) -> None:
    """Shuffled labels: the best of several trials looks better than chance on validation; on unseen tiles it is not."""
    stores = []
    for name, tiles, slides in (("train", 162, 6), ("external", 270, 3)):
        manifest = write_source(tmp_path / name, tiles=tiles, size=32, seed=3, slides=slides)
        table = pd.read_csv(manifest)
        table["label"] = table["label"].sample(frac=1, random_state=1).to_numpy()
        table.to_csv(manifest, index=False)
        stores.append(tmp_path / "stores" / name)
        pack(manifest, stores[-1], processes=1)
    options = {**BASE, "search.trials": 6, "search.final_seeds": 1, "data.split": "random", "loop.epochs": 3}
    config = write_config(tmp_path / "search.yaml", (stores[0], stores[1]), tmp_path / "runs", options)
    code, output = Command(config).end(600)
    assert code == 0, output
    (final,) = search_of(config).finals()
    predicted = read_predictions(final.predictions_file("elsewhere"))
    right = int((predicted.logits.argmax(axis=1) == predicted.labels).sum())
    assert stats.binomtest(right, len(predicted.labels), 1 / 9).pvalue > 1e-3
    choice = search_of(config).read()["choice"]
    assert choice["value"] > 1 / 9


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_the_winner_beats_the_worst_by_a_margin(tmp_path: Path) -> None:
    """On drawn tissues: of four learning rates, one that does nothing and one that learns."""
    train = write_source(tmp_path / "source", tiles=324, size=32, seed=3, slides=6)
    external = write_source(tmp_path / "external-source", tiles=54, size=32, seed=3, slides=2, external=True)
    for manifest, name in ((train, "train"), (external, "external")):
        pack(manifest, tmp_path / name, processes=1)
    options = {
        **BASE,
        "search.searcher": "grid",
        "search.space": {"optim.lr": {"grid": [1e-3, 1e-7]}, "model.unfrozen_depth": {"choice": [5]}},
        "loop.epochs": 4,
        "augment.crop_scale": [1.0, 1.0],
    }
    config = write_config(
        tmp_path / "search.yaml", (tmp_path / "train", tmp_path / "external"), tmp_path / "r", options
    )
    code, output = Command(config).end(600)
    assert code == 0, output
    good, bad = (one["value"] for one in trials_of(config))
    choice = search_of(config).read()["choice"]
    assert (choice["best"], choice["cheapest"]) == ("0001", "0001")
    assert good - 3 * choice["standard_error"] > bad
