"""The tiles of a run: its stores, its classes, and its parts (train, val, test, external)."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainer.config import Config
from trainer.durable import write_atomic
from trainer.errors import Problems, RunError, UsageError
from trainer.rundir import RESTORE, Json
from trainer.tiles.loader import TileSet
from trainer.tiles.nonorm import refuse_twin
from trainer.tiles.split import SPLITS, split_tiles
from trainer.tiles.stage import stage
from trainer.tiles.store import TileStore
from trainer.wording import counted


@dataclass(frozen=True)
class RunData:
    """Stores and splits of a run. `splits` (N,) names the part of each row of the training store."""

    store: TileStore
    external: dict[str, TileStore]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    class_map: Mapping[str, str]
    evaluate_test: bool

    def evaluated(self) -> list[str]:
        """The parts that get predictions: val, test where there is one to look at, and the external stores."""
        has_test = self.evaluate_test and (self.splits == "test").any()
        return ["val", *(["test"] if has_test else []), *self.external]

    def index(self, part: str) -> pd.DataFrame:
        """The index rows of a part, with the classes as the run calls them."""
        assert part != "test" or self.evaluate_test, "test tiles are set aside (data.evaluate_test)"
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

    def staged(self, folder: str) -> RunData:
        """The same, read from copies on this node's own disk; variables in `folder` are this node's.

        Raises:
            UsageError: where a variable is not set here.
            RunError: where there is no room.
        """
        place = stage_folder(folder)
        external = {name: stage(store, place) for name, store in self.external.items()}
        return replace(self, store=stage(self.store, place), external=external)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each store, by its key in the configuration."""
        external = {f"data.external.{name}": store.fingerprint for name, store in self.external.items()}
        return {"data.tiles": self.store.fingerprint, **external}

    def description(self) -> Json:
        """Which stores these are, as run.json and search.json say it."""
        external = {name: _description(store) for name, store in self.external.items()}
        return {"tiles": _description(self.store), "external": external}

    def warnings(self) -> list[str]:
        """What to know about the data before believing a number."""
        shared = {name: _shared(store, self.store) for name, store in self.external.items()}
        return [
            f"warning: data.external.{name}: {count:,} of its {len(self.external[name]):,} tiles are in the training "
            "store too (equal pixels), which makes its figures optimistic; pack it without them"
            for name, count in shared.items()
            if count
        ]


def stage_folder(folder: str) -> Path:
    """`data.stage` on this node.

    Raises:
        UsageError: where it names a variable that is not set here.
    """
    place = os.path.expandvars(folder)
    if "$" in place:
        raise UsageError(
            f"data.stage: {folder} names a variable that is not set on {socket.gethostname()}; name a folder on the "
            "nodes' own disks, such as /tmp"
        )
    return Path(place)


def _description(store: TileStore) -> Json:
    facts = {"path": str(store.path), "fingerprint": store.fingerprint, "tiles": len(store)}
    return {**facts, "tile_size": list(store.tile_size), "mpp": store.mpp}


def open_data(config: Config, split_file: Path | None = None) -> RunData:
    """Opens a run's stores, and splits them, or reads the split that was made when the run began.

    Raises:
        UsageError: where a store is not there, does not go with the training store, is its twin in other colours, or
            cannot be split as asked.
    """
    data, problems = config.data, Problems()
    external = {}
    with problems.kept("data.tiles"):
        store = TileStore.open(data.tiles)
        _check_labelled(store)
    for name, path in data.external.items():
        with problems.kept(f"data.external.{name}"):
            external[name] = TileStore.open(path)
    problems.check()
    index = store.index.assign(label=_mapped(store.index["label"], data.class_map))
    classes = tuple(sorted(index["label"].unique()))
    with problems.kept():
        _check_class_map(data.class_map, {label for known in (store, *external.values()) for label in known.classes})
    for name, other in external.items():
        with problems.kept(f"data.external.{name}"):
            refuse_twin(store.path, other.path, name)
        with problems.kept(f"data.external.{name}"):
            _check_external(other, store, classes, data.class_map)
    with problems.kept():
        splits = _split(config, index, split_file)
    problems.check()
    return RunData(store, external, classes, splits, data.class_map, data.evaluate_test)


def write_split(file: Path, data: RunData) -> None:
    """Keeps the split: tile_id, split."""
    split = pd.DataFrame({"tile_id": data.store.index["tile_id"], "split": data.splits})
    write_atomic(file, split.to_parquet(None, index=False))


def _split(config: Config, index: pd.DataFrame, file: Path | None) -> NDArray[np.str_]:
    return split_tiles(index, config.data, config.run.seed) if file is None else _kept_split(file, index)


def read_split(file: Path) -> pd.Series:
    """The split that a run keeps, by tile_id; RunError if its file is damaged."""
    try:
        return pd.read_parquet(file).set_index("tile_id")["split"]
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise RunError(f"{file}: cannot be read ({error}); {RESTORE}") from None


def _kept_split(file: Path, index: pd.DataFrame) -> NDArray[np.str_]:
    splits = read_split(file).reindex(index["tile_id"])
    if splits.isna().any():
        raise RunError(f"{file}: does not hold this store's tiles; {RESTORE}")
    return splits.to_numpy().astype("<U5")


def _mapped(labels: pd.Series, class_map: Mapping[str, str]) -> pd.Series:
    return labels.map(lambda label: class_map.get(label, label), na_action="ignore")


def _check_class_map(class_map: Mapping[str, str], classes: set[str]) -> None:
    if unknown := sorted(set(class_map) - classes):
        near = {name: difflib.get_close_matches(name, classes, n=1) for name in unknown}
        named = [f"{name} (did you mean {like[0]}?)" if like else name for name, like in near.items()]
        raise UsageError(
            f"data.class_map: no store has a class {', '.join(named)}; the classes are {', '.join(sorted(classes))}"
        )


def _check_labelled(store: TileStore) -> None:
    if unknown := int(store.index["label"].isna().sum()):
        raise UsageError(
            f"{store.path} has {counted(unknown, 'tile')} of unknown class, from which nothing can be learned; pack "
            "tiles in class folders, or a manifest with labels"
        )


def _check_external(other: TileStore, store: TileStore, classes: tuple[str, ...], class_map: Mapping[str, str]) -> None:
    if _shared(other, store) == len(other):
        raise UsageError(
            f"all tiles of {other.path} are in the training store too, so it would test on what was learned; name a "
            "store of other slides, or leave it out"
        )
    if unknown := sorted({class_map.get(label, label) for label in other.classes} - set(classes)):
        raise UsageError(
            f"has classes that the training store has not: {', '.join(unknown)} (known: {', '.join(classes)}); name "
            f"their equals in data.class_map, e.g. {{{unknown[0]}: {classes[0]}}}"
        )
    if other.mpp and store.mpp and abs(other.mpp / store.mpp - 1) > 0.05:
        raise UsageError(
            f"has {other.mpp} microns per pixel, the training store {store.mpp}; pack it again at the same resolution"
        )


def _shared(other: TileStore, store: TileStore) -> int:
    """How many tiles of `other` have the pixels of a tile of `store`."""
    return int(_pixels(other).isin(_pixels(store)).sum())


def _pixels(store: TileStore) -> pd.Series:
    """What tiles of equal pixels have in common: the tile_id without its suffix."""
    return store.index["tile_id"].str.split("-").str[0]
