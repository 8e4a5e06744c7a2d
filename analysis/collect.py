"""From run directories to one validated set of tables."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.kinds import KINDS, UNKNOWN, UNLABELLED, kind_of, twins
from analysis.scores import Floats, Indices
from trainer.errors import RunError, UsageError
from trainer.rundir import RunDir, read_json
from trainer.temperature import softmax
from trainer.tiles.meta import META, Meta
from trainer.tiles.store import TileStore

COLUMNS = ("tile_id", "path", "group", "label", "logits")
LOGITS = pa.list_(pa.float64())


@dataclass(frozen=True)
class Predictions:
    """What the best checkpoint said of one set of tiles; only tiles whose class is known and the model's own."""

    split: str
    kind: str
    """How the set was parted from the training tiles; stands beside every number from it."""
    table: pd.DataFrame
    """`tile_id, path, group, label`, one row a tile."""
    labels: Indices
    """(N,) class indices."""
    probabilities: Floats
    """(N, C)."""
    left_out: dict[str, int]
    """Tiles not scored, by reason."""
    classes: tuple[str, ...]
    """Of the labels and of the columns of the probabilities."""

    @cached_property
    def predicted(self) -> Indices:
        """(N,) class indices of the highest probability."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def in_order_of(self, other: Predictions) -> Predictions | None:
        """The same with tiles and classes in the order of another's; None where it is of other tiles, or other labels.

        Both must have the same classes, which `collect` sees to.
        """
        place = pd.Index(self.table["tile_id"]).get_indexer(pd.Index(other.table["tile_id"]))
        if len(self.table) != len(other.table) or (place < 0).any():
            return None
        labels = np.array([other.classes.index(name) for name in self.classes])[self.labels[place]]
        if (labels != other.labels).any():
            return None
        columns = [self.classes.index(name) for name in other.classes]
        return replace(
            self,
            table=self.table.iloc[place].reset_index(drop=True),
            labels=labels,
            probabilities=self.probabilities[place][:, columns],
            classes=other.classes,
        )


@dataclass(frozen=True)
class Model:
    """A model, as far as its predictions tell of it."""

    name: str
    """Of several of one name on a page, the path that tells them apart."""
    place: Path
    """The run directory, or the file of predictions."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    class_names: Mapping[str, Mapping[str, str]]
    """English and Chinese names (`en`, `zh`) by class, where they were given."""
    predictions: tuple[Predictions, ...]
    """Empty while training has not finished; val, test, then the external sets."""


@dataclass(frozen=True)
class Run(Model):
    """One run directory, read."""

    directory: RunDir
    identity: dict[str, Any]
    config: str
    """The resolved configuration, as YAML."""
    history: pd.DataFrame
    """One row an epoch; empty before the first has ended."""
    best: dict[str, Any] | None
    attempts: Sequence[Mapping[str, Any]]
    """What is known of each start."""
    looks: Mapping[str, int]
    """How often each test or external set was looked at."""
    split: pd.DataFrame
    """`tile_id, split` of the training store's tiles."""
    moved: Mapping[str, Path]
    """Where stores lie now that were somewhere else while the run trained, by fingerprint."""

    @property
    def kind(self) -> str:
        """How validation and test tiles were parted from the training tiles."""
        return KINDS[self.identity["data"]["split"]]

    @property
    def twins(self) -> dict[str, str]:
        """External sets that are no test of it, by name, and why."""
        return twins(self.identity["data"])

    def open_store(self, split: str) -> TileStore:
        """The store that holds the tiles of a split.

        Raises:
            UsageError: if it is gone, damaged, or in its place are other tiles than the run knew.
        """
        data = self.identity["data"]
        known = data["external"].get(split, data["tiles"])
        fingerprint, path = known["fingerprint"], Path(known["path"])
        place = self.moved.get(fingerprint, path)
        if not os.access(place / META, os.R_OK):
            raise UsageError(
                f"{place}: the tile store is no longer there, or may not be read; move it back, or name the place "
                "where it is now with --store PLACE"
            )
        store = TileStore.open(place)
        if store.fingerprint != fingerprint:
            raise UsageError(
                f"{place}: holds other tiles than the run knew there (fingerprint {store.fingerprint[:12]}, the run's "
                f"{fingerprint[:12]}); where the run's own store was moved, name its place with --store PLACE"
            )
        return store


def collect(paths: Sequence[Path], stores: Sequence[Path] = ()) -> list[Model]:
    """Reads runs, and files of predictions, that can stand on one page.

    Args:
        paths: run directories, or files of predictions in our format, whoever has written them.
        stores: tile stores that are no longer where the runs knew them; each is known by its fingerprint.

    Raises:
        UsageError: naming every path that is no readable run or store, a run that is there twice, a store that is no
            run's, or the class sets if they differ.
    """
    _refuse_twice(paths)
    runs: list[Model] = []
    moved, problems = {}, []
    for path in stores:
        try:
            moved[Meta.read(path).fingerprint] = path
        except UsageError as error:
            problems.append(str(error))
    for path in paths:
        try:
            runs.append(read_file(path) if path.is_file() else read_run(path, moved))
        except (UsageError, RunError) as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    _refuse_strange_stores([run for run in runs if isinstance(run, Run)], moved)
    _refuse_different_classes(runs)
    return _told_apart(runs)


def read_run(path: Path, moved: Mapping[str, Path] | None = None) -> Run:
    """Reads one run directory; `moved` as of `Run`.

    Raises:
        UsageError: if there is none at `path`, or a file in it is not what it should be.
        RunError: if a file that the training writes is damaged.
    """
    _refuse_no_run(path)
    directory = RunDir(path)
    identity = directory.read_identity()
    _refuse_missing_keys(identity, directory.identity_file)
    split = _table(directory.split_file, ("tile_id", "split")).to_pandas()
    return Run(
        name=str(identity["run"]),
        place=path,
        classes=tuple(identity["classes"]),
        class_names=identity.get("class_names") or {},
        predictions=tuple(_all_predictions(directory, identity)),
        directory=directory,
        identity=identity,
        config=_text(directory.config_file),
        history=pd.DataFrame(directory.read_metrics()),
        best=read_json(directory.best_file) if directory.best_file.is_file() else None,
        attempts=list(directory.attempts().values()),
        looks=_looks(directory),
        split=split,
        moved=moved or {},
    )


def read_file(path: Path) -> Model:
    """Reads a file of predictions that comes without its run.

    Raises:
        UsageError: where it holds no tiles, and as `read_predictions`.
    """
    stored = _table(path, COLUMNS)
    if not len(stored):
        raise UsageError(f"{path}: holds no tiles")
    classes = _classes_of(stored, path)
    return Model(path.stem, path, classes, {}, (read_predictions(path, path.stem, UNKNOWN, classes),))


def _looks(directory: RunDir) -> dict[str, int]:
    return dict(Counter(look["split"] for look in directory.read_evaluations()))


def _refuse_no_run(path: Path) -> None:
    if RunDir(path).identity_file.is_file():
        return
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such directory; name the directory of a run, e.g. runs/NAME")
    inside = sorted(str(child) for child in path.iterdir() if RunDir(child).identity_file.is_file())
    remedy = f"it holds runs: name one of {', '.join(inside)}" if inside else "name the directory of a run"
    raise UsageError(f"{path}: is not a run directory (it has no {RunDir(path).identity_file.name}); {remedy}")


def _refuse_missing_keys(identity: dict[str, Any], file: Path) -> None:
    missing = [key for key in ("run", "classes", "data") if key not in identity]
    missing += [f"data.{key}" for key in ("tiles", "external", "split") if key not in identity.get("data", {})]
    if missing:
        raise UsageError(f"{file}: lacks {', '.join(missing)}; was it written by another program?")
    if identity["data"]["split"] not in KINDS:
        raise UsageError(f"{file}: data.split is {identity['data']['split']!r}, not one of {', '.join(KINDS)}")
    # They become names of files.
    if strange := [name for name in identity["data"]["external"] if Path(name).name != name or name[:1] in ("", ".")]:
        raise UsageError(f"{file}: {', '.join(map(repr, strange))} cannot be the name of an external set")


def _refuse_twice(paths: Sequence[Path]) -> None:
    given: dict[Path, list[str]] = {}
    for path in paths:
        given.setdefault(path.resolve(), []).append(str(path))
    if twice := [same for same in given.values() if len(same) > 1]:
        raise UsageError("\n".join(f"{' and '.join(same)}: the same run; name it once" for same in twice))


def _refuse_strange_stores(runs: Sequence[Run], moved: Mapping[str, Path]) -> None:
    data = [run.identity["data"] for run in runs]
    known = {store["fingerprint"] for each in data for store in (each["tiles"], *each["external"].values())}
    strange = [str(path) for fingerprint, path in moved.items() if fingerprint not in known]
    if strange:
        raise UsageError(f"{', '.join(strange)}: no run of this page knows these tiles; leave out that --store")


def _told_apart(runs: Sequence[Model]) -> list[Model]:
    """The runs, those of one name renamed so that a reader can tell which is which."""
    return [replace(run, name=_own_name(run, [other for other in runs if other.name == run.name])) for run in runs]


def _own_name(run: Model, namesakes: Sequence[Model]) -> str:
    """The run's name, or where others have it too, its path below the folder that they share."""
    if len(namesakes) == 1:
        return run.name
    shared = os.path.commonpath([each.place.resolve().parent for each in namesakes])
    return str(run.place.resolve().relative_to(shared))


def _refuse_different_classes(runs: Sequence[Model]) -> None:
    if len({frozenset(run.classes) for run in runs}) > 1:
        lists = "\n".join(f"  {run.place}: {', '.join(run.classes)}" for run in runs)
        raise UsageError(f"these runs have different classes, so they cannot stand on one page:\n{lists}")


def _all_predictions(directory: RunDir, identity: dict[str, Any]) -> Iterator[Predictions]:
    data = identity["data"]
    for split in ("val", "test", *data["external"]):
        file = directory.predictions_file(split)
        if file.is_file():
            yield read_predictions(file, split, kind_of(split, data), tuple(identity["classes"]))


def read_predictions(file: Path, split: str, kind: str, classes: tuple[str, ...]) -> Predictions:
    """Reads a predictions file, its logits brought into the order of `classes`.

    Raises:
        UsageError: for missing columns, other classes, a tile that is there twice, or logits that are not finite.
    """
    stored = _table(file, COLUMNS)
    columns = _order_of_logits(stored, file, classes)
    table = stored.drop_columns(["logits"]).to_pandas()
    if repeated := int(table["tile_id"].duplicated().sum()):
        raise UsageError(f"{file}: {repeated} tiles are there more than once; run `python -m trainer train` again")
    if (stored["logits"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False) != len(classes)).any():
        raise UsageError(f"{file}: not every tile has {len(classes)} logits, one a class")
    try:
        flat = stored["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        probabilities = softmax(flat.reshape(len(table), len(classes))[:, columns])
    except ValueError as error:
        raise UsageError(f"{file}: {error}; the predictions cannot be scored") from None
    known = table["label"].isin(classes).to_numpy()
    labels = pd.Categorical(table["label"][known], categories=list(classes)).codes.astype(np.int64)
    return Predictions(
        split=split,
        kind=kind,
        table=table[known].reset_index(drop=True),
        labels=labels,
        probabilities=probabilities[known],
        left_out=table["label"][~known].fillna(UNLABELLED).value_counts().to_dict(),
        classes=classes,
    )


def _order_of_logits(stored: pa.Table, file: Path, classes: tuple[str, ...]) -> list[int]:
    """Where each of `classes` stands in the stored logits."""
    inside = _classes_of(stored, file)
    if sorted(inside) != sorted(classes):
        raise UsageError(f"{file}: its classes are not the run's:\n  {', '.join(inside)}\n  run: {', '.join(classes)}")
    return [inside.index(name) for name in classes]


def _classes_of(stored: pa.Table, file: Path) -> tuple[str, ...]:
    metadata = stored.schema.metadata or {}
    if b"classes" not in metadata:
        raise UsageError(
            f"{file}: its schema metadata has no `classes`, a JSON list of the class names in the order of the logits"
        )
    try:
        names = json.loads(metadata[b"classes"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UsageError(f"{file}: `classes` in its schema metadata is no JSON list of class names, each there once")
    return tuple(names)


def _table(file: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a file, of the types that we write, whatever program has written it."""
    try:
        table = pq.read_table(file)
        table.validate(full=True)
        if missing := [name for name in columns if name not in table.column_names]:
            raise UsageError(f"{file}: lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}")
        types = pa.schema([(name, LOGITS if name == "logits" else pa.string()) for name in columns])
        return table.select(list(columns)).cast(types.with_metadata(table.schema.metadata))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from None
