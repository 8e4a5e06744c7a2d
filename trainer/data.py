"""The tiles of a run: its stores, its classes, and its parts (train, val, test, external)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainer.config import Config
from trainer.durable import write_atomic
from trainer.errors import RunError, UsageError
from trainer.tiles.loader import TileSet
from trainer.tiles.split import SPLITS, split_tiles
from trainer.tiles.store import TileStore


@dataclass(frozen=True)
class RunData:
    """Stores and splits of a run. `splits` (N,) names the part of each row of the training store."""

    store: TileStore
    external: dict[str, TileStore]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    class_map: Mapping[str, str]

    def evaluated(self) -> list[str]:
        """The parts that get predictions: val, test where there is one, and the external stores."""
        return ["val", *(["test"] if (self.splits == "test").any() else []), *self.external]

    def index(self, part: str) -> pd.DataFrame:
        """The index rows of a part, with the classes as the run calls them."""
        index = self.external[part].index if part in self.external else self.store.index.loc[self.splits == part]
        return index.assign(label=_mapped(index["label"], self.class_map))

    def tiles(self, part: str) -> TileSet:
        """The tiles of a part."""
        store = self.store if part in SPLITS else self.external[part]
        index = self.index(part)
        codes = pd.Categorical(index["label"], categories=list(self.classes)).codes
        return TileSet(store.tiles, index.index.to_numpy(dtype=np.int64), np.asarray(codes, dtype=np.int64))

    def counts(self) -> pd.DataFrame:
        """Tiles by class (rows) and part (columns)."""
        parts = ["train", *self.evaluated()]
        columns = {part: self.index(part)["label"].value_counts().reindex(self.classes, fill_value=0) for part in parts}
        return pd.DataFrame(columns)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each store, by its key in the configuration."""
        external = {f"data.external.{name}": store.fingerprint for name, store in self.external.items()}
        return {"data.tiles": self.store.fingerprint, **external}


def open_data(config: Config, split_file: Path | None = None) -> RunData:
    """Opens a run's stores, and splits them, or reads the split that was made when the run began.

    Raises:
        UsageError: where a store is not there, does not go with the training store, or cannot be split as asked.
    """
    data = config.data
    store = TileStore.open(data.tiles)
    external = {name: TileStore.open(path) for name, path in data.external.items()}
    index = store.index.assign(label=_mapped(store.index["label"], data.class_map))
    classes = tuple(sorted(index["label"].unique()))
    for name, other in external.items():
        _check_external(name, other, store, classes, data.class_map)
    if split_file is not None and split_file.exists():
        splits = _read_split(split_file, index)
    else:
        splits = split_tiles(index, data, config.run.seed)
    return RunData(store, external, classes, splits, data.class_map)


def write_split(file: Path, data: RunData) -> None:
    """Keeps the split: tile_id, split."""
    split = pd.DataFrame({"tile_id": data.store.index["tile_id"], "split": data.splits})
    write_atomic(file, split.to_parquet(None, index=False))


def _read_split(file: Path, index: pd.DataFrame) -> NDArray[np.str_]:
    try:
        split = pd.read_parquet(file).set_index("tile_id")["split"]
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise RunError(f"{file}: cannot be read ({error}); restore it, or start over with --fresh") from None
    splits = split.reindex(index["tile_id"])
    if splits.isna().any():
        raise RunError(f"{file}: does not hold this store's tiles; restore it, or start over with --fresh")
    return splits.to_numpy().astype("<U5")


def _mapped(labels: pd.Series, class_map: Mapping[str, str]) -> pd.Series:
    return labels.map(lambda label: class_map.get(label, label), na_action="ignore")


def _check_external(
    name: str, other: TileStore, store: TileStore, classes: tuple[str, ...], class_map: Mapping[str, str]
) -> None:
    if unknown := sorted({class_map.get(label, label) for label in other.classes} - set(classes)):
        raise UsageError(
            f"data.external.{name}: has classes that the training store has not: {', '.join(unknown)} (known: "
            f"{', '.join(classes)}); name their equals in data.class_map, e.g. {{{unknown[0]}: {classes[0]}}}"
        )
    if other.mpp and store.mpp and abs(other.mpp / store.mpp - 1) > 0.05:
        raise UsageError(
            f"data.external.{name}: has {other.mpp} microns per pixel, the training store {store.mpp}; pack it again "
            "at the same resolution"
        )
