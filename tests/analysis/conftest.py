from pathlib import Path

import numpy as np
import pytest

from tests.analysis.made_runs import CLASSES, skewed_logits, write_predictions, write_run, write_store
from trainer.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run without a checkpoint: 60 tiles of three classes, validation and one external set."""
    labels = [CLASSES[number % 3] for number in range(60)]
    tiles = np.random.default_rng(0).integers(0, 256, (60, 48, 48, 3), dtype=np.uint8)
    index = write_store(tmp_path / "store", labels, tiles)
    outside = write_store(tmp_path / "outside", labels[:12], tiles[:12])
    split = ["val" if number % 4 == 0 else "train" for number in range(60)]
    made = write_run(
        tmp_path / "runs" / "first", tmp_path / "store", split, external={"elsewhere": tmp_path / "outside"}
    )
    val = index[np.array(split) == "val"]
    write_predictions(made.predictions_file("val"), val, skewed_logits(val["label"], CLASSES, 3.0), CLASSES)
    write_predictions(
        made.predictions_file("elsewhere"), outside, skewed_logits(outside["label"], CLASSES, 1.0), CLASSES
    )
    return made
