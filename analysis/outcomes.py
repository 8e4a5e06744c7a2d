"""What was said of each tile, right or wrong, without its probabilities: hundreds of files a second.

So pyarrow's conveniences that import pandas (`read_table`, `to_numpy`, `fill_null`) are not used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.scores import Indices
from trainer.errors import UsageError

TEXT = pa.dictionary(pa.int32(), pa.string())
TYPES = {"label": TEXT, "group": TEXT, "logits": pa.list_(pa.float32())}
COLUMNS = list(TYPES)


@dataclass(frozen=True)
class Outcomes:
    """The tiles of one set whose class is known to the model."""

    labels: Indices
    """(N,) class indices, in the order of the file's classes."""
    predicted: Indices
    """(N,) class indices of the highest logit."""
    groups: Indices | None
    """(N,) indices of slides or patients, not all of which need occur; None where the group of a tile is unknown."""


def read_outcomes(file: Path) -> Outcomes:
    """Reads a predictions file.

    Raises:
        UsageError: if it is none, or has logits that are not finite.
    """
    try:
        with pq.ParquetFile(file, read_dictionary=COLUMNS[:2]) as stream:
            stored = stream.read(columns=COLUMNS, use_threads=False)
        if strange := [name for name, kind in TYPES.items() if stored.schema.field(name).type != kind]:
            raise TypeError(f"{strange[0]} is {stored.schema.field(strange[0]).type}")
        stored.validate(full=True)
        classes = json.loads(stored.schema.metadata[b"classes"])
        if not (classes and isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ValueError("its classes are no list of names")
        values = stored["logits"].combine_chunks().values
        if values.null_count:
            raise ValueError("logits are missing")
        logits = np.from_dlpack(values)
        scores = logits.reshape(stored.num_rows, len(classes))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: no predictions can be read from it ({error})") from None
    if not np.isfinite(scores).all():
        raise UsageError(f"{file}: has logits that are NaN or infinite, so it cannot be scored")
    labels = _coded(stored["label"], {name: place for place, name in enumerate(classes)})
    groups, known = _coded(stored["group"]), labels >= 0
    return Outcomes(
        labels=labels[known],
        predicted=scores.argmax(axis=1).astype(np.int64)[known],
        groups=groups[known] if (groups >= 0).all() else None,
    )


def _coded(column: pa.ChunkedArray, codes: dict[Any, int] | None = None) -> Indices:
    """The values of a dictionary column as `codes`, or as they are stored; -1 where there is none."""
    values = column.unify_dictionaries().combine_chunks()
    stored = values.dictionary.to_pylist()
    of_stored = [place if codes is None else codes.get(name, -1) for place, name in enumerate(stored)]
    return np.array([*of_stored, -1], dtype=np.int64)[_places(values.indices)]


def _places(array: pa.Array) -> Indices:
    """Whole numbers (int32) as they lie in memory; -1 where there is none."""
    validity, content = array.buffers()
    places = np.frombuffer(content, dtype=np.int32)[: len(array)].astype(np.int64)
    if validity is None:
        return places
    is_there = np.unpackbits(np.frombuffer(validity, dtype=np.uint8), bitorder="little")[: len(array)]
    return np.where(is_there, places, -1)
