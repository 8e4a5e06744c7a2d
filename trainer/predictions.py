"""A file of predictions: the logits of a checkpoint, tile by tile, as analysis reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.durable import write_atomic
from trainer.errors import RunError
from trainer.rundir import RESTORE
from trainer.standard_error import Indices

MORE = ("predicted", "probability")
"""Columns that predictions may have beside those that all have: the class of the highest logit, and its probability."""

READ = {"group": pa.string(), "label": pa.string(), "logits": pa.list_(pa.float32())}
"""Columns that are read, and their types."""


def write_predictions(
    file: Path,
    index: pd.DataFrame,
    logits: NDArray[np.float32],
    classes: Sequence[str],
    checkpoint: str,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes (n, classes) logits of n tiles beside the columns of an index; whole or not at all.

    Args:
        file: where; the folder is made.
        index: tile_id, path, group and label of each tile, and what else its columns are to say.
        logits: in the order of the index.
        classes: the names of the logits' columns.
        checkpoint: what made them.
        facts: further entries of the schema's metadata.
    """
    columns = {name: pa.array(index[name], pa.string()) for name in ("tile_id", "path", "group", "label")}
    more = {name: pa.array(index[name]) for name in index.columns if name in MORE}
    ends = pa.array(np.arange(0, logits.size + 1, logits.shape[1], dtype=np.int32))
    rows = pa.ListArray.from_arrays(ends, pa.array(np.asarray(logits, dtype=np.float32).ravel()))
    metadata = {"classes": json.dumps(list(classes)), "checkpoint": checkpoint, **(facts or {})}
    buffer = io.BytesIO()
    pq.write_table(pa.table({**columns, "logits": rows, **more}).replace_schema_metadata(metadata), buffer)
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, buffer.getvalue())


def facts_of(file: Path) -> dict[str, str] | None:
    """The schema's metadata of a file of predictions; None where there is no such file, or it is none."""
    try:
        metadata = pq.read_schema(file).metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}
    except (OSError, pa.ArrowException, ValueError):
        return None


def predicted_by(file: Path) -> str | None:
    """The checkpoint that a file of predictions was made by; None where there is no such file, or a damaged one."""
    return (facts_of(file) or {}).get("checkpoint")


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
        table.validate(full=True)
        classes = json.loads(table.schema.metadata[b"classes"])
        frame = table.select(list(READ)).cast(pa.schema(READ)).to_pandas()
        frame = frame[frame["label"].isin(classes)]
        labels = np.asarray(pd.Categorical(frame["label"], categories=classes).codes, dtype=np.int64)
        logits = np.stack(frame["logits"].to_list()) if len(frame) else np.zeros((0, len(classes)))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read ({error}); {RESTORE}") from None
    groups = pd.factorize(frame["group"])[0]
    return Predicted(logits.astype(np.float32), labels, groups if (groups >= 0).all() else None)
