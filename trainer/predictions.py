"""Predictions: the logits of the best checkpoint, tile by tile, as analysis reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.durable import write_atomic
from trainer.errors import RunError
from trainer.standard_error import Indices


def write_predictions(
    file: Path, index: pd.DataFrame, logits: NDArray[np.float32], classes: Sequence[str], checkpoint: str
) -> None:
    """Writes (n, classes) logits of n tiles beside their tile_id, path, group and label; whole or not at all."""
    columns = {name: pa.array(index[name], pa.string()) for name in ("tile_id", "path", "group", "label")}
    table = pa.table({**columns, "logits": pa.array(list(logits), pa.list_(pa.float32()))})
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"classes": json.dumps(list(classes)), "checkpoint": checkpoint}), buffer
    )
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, buffer.getvalue())


def predicted_by(file: Path) -> str | None:
    """The checkpoint that a file of predictions was made by; None where there is no such file, or a damaged one."""
    try:
        return bytes(pq.read_schema(file).metadata[b"checkpoint"]).decode()
    except (OSError, pa.ArrowException, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Predicted:
    """Predictions, read: (n, classes) logits of the n tiles whose class is known, and (n,) class indices."""

    logits: NDArray[np.float32]
    labels: Indices
    groups: Indices | None
    """(n,) indices of slides or patients; None where that of a tile is unknown."""


def read_predictions(file: Path) -> Predicted:
    """Reads a file of predictions.

    Raises:
        RunError: where it cannot be read.
    """
    try:
        table = pq.read_table(file)
        classes = json.loads(table.schema.metadata[b"classes"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error})") from None
    frame = table.to_pandas()
    frame = frame[frame["label"].isin(classes)]
    labels = np.asarray(pd.Categorical(frame["label"], categories=classes).codes, dtype=np.int64)
    logits = np.stack(frame["logits"].to_list()) if len(frame) else np.zeros((0, len(classes)))
    groups = pd.factorize(frame["group"])[0]
    return Predicted(logits.astype(np.float32), labels, groups if (groups >= 0).all() else None)
