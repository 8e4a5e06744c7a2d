"""What training's last act adds to best.json, and that it does so whenever it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.calibration import Calibration
from trainer.checkpoint import write_history
from trainer.data import open_data
from trainer.predictions import read_predictions
from trainer.rundir import RunDir, read_json, write_json
from trainer.temperature import fit_temperature
from trainer.tiles.stain import measure, summarise
from trainer.trained import open_trained


def test_best_json_holds_temperature_and_stain(trained_run: RunDir) -> None:
    best = read_json(trained_run.best_file)
    val = read_predictions(trained_run.predictions_file("val"))
    assert best["temperature"] == fit_temperature(val.logits, val.labels)
    train = open_data(open_trained(trained_run.path).config, trained_run.split_file).tiles("train")
    expected = summarise(measure(train.tiles, np.sort(train.rows)))  # there are fewer than the sample takes
    assert Calibration.read(best).stain == expected
    assert expected.tiles == len(train)


@pytest.mark.parametrize("lost", ["an early version", "history written anew"])
def test_where_it_is_missing_the_same_command_adds_it_and_looks_at_nothing_again(
    trained_run: RunDir, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    run = RunDir(trained_run.path.with_name(lost.replace(" ", "-")))
    shutil.copytree(trained_run.path, run.path)
    config = Path(run.config_file)
    config.write_text(config.read_text().replace("name: small", f"name: {run.name}"))
    best = read_json(run.best_file)
    if lost == "an early version":
        write_json(run.best_file, {key: value for key, value in best.items() if key not in ("temperature", "stain")})
    else:  # as every attempt does when it begins
        write_history(run, run.read_metrics(), best["metric"])
    looks, predictions = run.evaluations_file.read_text(), run.predictions_file("val").stat().st_mtime_ns
    assert Calibration.read(read_json(run.best_file)) == Calibration(None, None)
    for said in ("best epoch", "nothing to do"):
        assert main(["train", str(config), "--debug"]) == 0
        assert said in capsys.readouterr().out
        assert read_json(run.best_file) == best
    assert run.evaluations_file.read_text() == looks
    assert run.predictions_file("val").stat().st_mtime_ns == predictions
