"""Predictions: the logits of the best checkpoint, tile by tile, as analysis reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.rundir import fsync_dir


def write_predictions(file: Path, index: pd.DataFrame, logits: NDArray[np.float32], classes: Sequence[str]) -> None:
    """Writes (n, classes) logits of n tiles beside their tile_id, path, group and label; whole or not at all."""
    table = pa.table(
        {
            **{name: pa.array(index[name], pa.string()) for name in ("tile_id", "path", "group", "label")},
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"classes": json.dumps(list(classes))})
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(file)
    fsync_dir(file.parent)
