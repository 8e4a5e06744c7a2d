"""What is audited: the tiles of some stores, parted into training, validation, test and external sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.collect import Run, read_run
from analysis.kinds import EXTERNAL, KINDS, UNLABELLED
from trainer.config import DataSection, load_config
from trainer.errors import Problems, UsageError
from trainer.tiles.meta import Meta
from trainer.tiles.nonorm import is_unnormalised, names_of, refuse_twin
from trainer.tiles.split import SPLITS, split_tiles
from trainer.tiles.store import SCHEMA, TileStore
from trainer.wording import counted, joined

TRAIN, VAL, TEST = SPLITS
UNSPLIT = "unsplit"
"""The set of the tiles of a store that could not be split: of all of them, or of those of unknown class."""
SEED = 0
FEW = 10
"""Classes of fewer tiles stay whole in the training set, where the trainer would refuse to split them."""
Part = tuple[str | NDArray[np.object_], TileStore]


@dataclass(frozen=True)
class Sets:
    """Tiles by set. Rows of `tiles` are the tiles that every other part of the audit speaks of, in its order."""

    stores: tuple[TileStore, ...]
    tiles: pd.DataFrame
    """The stores' index columns, with `label` "class unknown" where there is none, and: `set`; `store`, its place in
    `stores`; `row`, the tile's row in it; `pixels`, what tiles of equal pixels have in common; `code`, the class index,
    -1 for a class that is unknown or that the training store lacks."""
    classes: tuple[str, ...]
    kind: str
    """How validation was parted from training: "group-level split"; "" where it was not."""
    said: str
    """Whence that split is: a sentence."""
    is_made: bool = False
    """Whether the split was made for this audit alone."""
    lacking: tuple[str, ...] = ()
    """What could not be audited and why, a sentence each."""
    refused: tuple[str, ...] = ()
    """External sets of the run that are left out, since they are no test of it, and why."""

    @property
    def names(self) -> list[str]:
        """The sets in order: training (or unsplit), validation, test, the external ones."""
        return list(dict.fromkeys(self.tiles["set"]))

    @property
    def training(self) -> str | None:
        """The set that a model learns from, if it is there."""
        return next((name for name in self.names if name in (TRAIN, UNSPLIT)), None)

    @property
    def tested(self) -> list[str]:
        """The sets that tell how good a model is."""
        return [name for name in self.names if name not in (TRAIN, UNSPLIT)]

    @property
    def external(self) -> list[str]:
        """The sets of other stores."""
        return [name for name in self.names if name not in (*SPLITS, UNSPLIT)]

    def of(self, name: str) -> NDArray[np.bool_]:
        """(N,) which tiles belong to a set."""
        chosen: NDArray[np.bool_] = (self.tiles["set"] == name).to_numpy()
        return chosen

    @property
    def is_labelled(self) -> NDArray[np.bool_]:
        """(N,) which tiles have a class."""
        labelled: NDArray[np.bool_] = (self.tiles["label"] != UNLABELLED).to_numpy()
        return labelled

    def described(self, name: str) -> str:
        """What stands beside a number from a set: its split and how many tiles it has."""
        kind = EXTERNAL if name in self.external else self.kind
        return f"{name}, {kind}, {counted(int(self.of(name).sum()), 'tile')}"


def sets_of_stores(paths: Sequence[Path]) -> Sets:
    """The first store, split, and the others as external sets.

    Raises:
        UsageError: naming every path that is no store, a store that is there twice, or a twin that is no test set.
    """
    names = _told_apart(paths)
    _refuse_twins(paths[0], paths[1:])
    opened, problems = [], Problems()
    for path in paths:
        with problems.kept():
            opened.append(TileStore.open(path))
    problems.check()
    _refuse_equal(opened)
    store, *others = opened
    split, kind, said = _own_split(store)
    parts: list[Part] = [(split, store), *((names[other.path], other) for other in others)]
    return replace(_sets(parts, store.classes, {}, kind, said), is_made=kind != KINDS["source"])


def run_and_further(path: Path, stores: Sequence[Path]) -> tuple[Run, list[Path]]:
    """A run that finds its stores where they are now, and those stores that it does not know.

    Raises:
        UsageError: if `path` is no run, or naming every path that is no store.
    """
    problems, given = Problems(), {}
    for store in stores:
        with problems.kept():
            given[Meta.read(store).fingerprint] = store
    problems.check()
    run = read_run(path, given)
    data = run.identity["data"]
    known = {store["fingerprint"] for store in (data["tiles"], *data["external"].values())}
    return run, [store for fingerprint, store in given.items() if fingerprint not in known]


def sets_of_run(run: Run, further: Sequence[Path] = ()) -> Sets:
    """A run's own split and external sets, and further stores as external sets.

    Stores of the run that are not there are left out, and said in `lacking`; its external sets that are the training
    store's twin are left out, and said in `refused`.

    Raises:
        UsageError: for a further store that is none, or the training store's twin.
    """
    known = run.identity["data"]
    training = Path(known["tiles"]["path"])
    _refuse_twins(training, further)
    lacking: list[str] = []
    store = _opened(run, TRAIN, lacking)
    external = {name: _opened(run, name, lacking) for name in known["external"] if name not in run.twins}
    names = _told_apart([training, *further], taken=tuple(external))
    for path in further:
        external[names[path]] = TileStore.open(path)
    class_map = load_config(run.directory.config_file).data.class_map
    parts: list[Part] = [(name, other) for name, other in external.items() if other is not None]
    if store is not None:
        _refuse_equal([store, *(other for _, other in parts)])
        split = run.split.set_index("tile_id")["split"].reindex(store.index["tile_id"])
        parts.insert(0, (split.to_numpy(dtype=object), store))
    sets = _sets(parts, run.classes, class_map, run.kind, f"the split of the run {run.name}")
    refused = tuple(f"{name}: {why}" for name, why in run.twins.items())
    return replace(sets, refused=refused, lacking=(*lacking, *sets.lacking))


def _refuse_twins(training: Path, tests: Sequence[Path]) -> None:
    problems = Problems()
    for path in tests:
        with problems.kept():
            refuse_twin(training, path)
    problems.check()


def _opened(run: Run, name: str, lacking: list[str]) -> TileStore | None:
    try:
        return run.open_store(name)
    except UsageError as error:
        what = "the training store" if name == TRAIN else f"the external set {name}"
        lacking.append(f"{what} was not audited: {error}")
        return None


def _refuse_equal(stores: Sequence[TileStore]) -> None:
    """A store beside itself would be a thousand findings that say one thing."""
    problems: list[str] = []
    first: dict[str, Path] = {}
    for store in stores:
        if store.fingerprint in first:
            problems.append(f"{store.path}: holds the same tiles as {first[store.fingerprint]}; name it once")
        first.setdefault(store.fingerprint, store.path)
    if problems:
        raise UsageError(*problems)


def _told_apart(paths: Sequence[Path], taken: Sequence[str] = ()) -> dict[Path, str]:
    """A name for each store: the end of its path, as long as it takes to be no other's and no split's."""
    names: dict[Path, str] = {}
    for path in paths:
        parts = path.absolute().parts
        ends = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = {*names.values(), *taken, *SPLITS, UNSPLIT}
        names[path] = next((end for end in ends if end not in others), str(path))
    return names


def _own_split(store: TileStore) -> tuple[NDArray[np.object_], str, str]:
    """The split of each tile of a store, what kind it is, and where it comes from.

    The source's own where it names training and validation tiles; else 15 % of the tiles, in whole groups where every
    tile has one, else tile by tile, as `python -m trainer train` with its defaults would draw them. Tiles of unknown
    class, from which nothing can be learned, are in no part unless the source says so.
    """
    said = store.index["split"].isin(SPLITS)
    labelled = store.index["label"].notna()
    if (said | ~labelled).all() and {TRAIN, VAL} <= set(store.index["split"][said]):
        split = store.index["split"].where(said, UNSPLIT)
        return split.to_numpy(dtype=object), KINDS["source"], "the source's own split"
    split, kind, whence = _made_split(store.path, store.index[labelled])
    return split.reindex(store.index.index, fill_value=UNSPLIT).to_numpy(dtype=object), kind, whence


def _made_split(path: Path, index: pd.DataFrame) -> tuple[pd.Series, str, str]:
    """The same of some labelled tiles, made for this audit."""
    reasons: list[str] = []
    if not len(index):
        return pd.Series(index=index.index, dtype=object), "", "no split, since the class of no tile is known"
    known = index["group"].notna().all()
    for way, said in (
        ("group", "a split made for this audit: about 15 % of the tiles, in whole groups, seed 0"),
        ("random", "a split made for this audit: 15 % of the tiles, drawn tile by tile, seed 0"),
    ):
        try:
            drawn = pd.Series(_drawn(path, index, way), index.index)
            return drawn, KINDS[way], said + (f" (by group: {reasons[0]})" if known and reasons else "")
        except UsageError as error:
            reasons.append(str(error))
    return pd.Series(UNSPLIT, index.index), "", f"no split, since none could be made: {reasons[-1]}"


def _drawn(path: Path, index: pd.DataFrame, way: str) -> NDArray[np.object_]:
    """As `trainer.tiles.split` draws it; where it refuses, without the classes of few tiles, which are trained on."""
    data = DataSection.model_validate({"tiles": path, "split": way})
    try:
        return split_tiles(index, data, SEED).astype(object)
    except UsageError:
        many = (index["label"].map(index["label"].value_counts()) >= FEW).to_numpy()
        if many.all() or not many.any():
            raise
        split = np.full(len(index), TRAIN, dtype=object)
        split[many] = split_tiles(index[many], data, SEED)
        return split


def _sets(parts: Sequence[Part], classes: tuple[str, ...], class_map: Mapping[str, str], kind: str, said: str) -> Sets:
    """The sets of some stores, each given with the set of each of its tiles, or the one set of all of them."""
    stores = tuple(store for _, store in parts)
    tables = [
        store.index.assign(set=of, store=place, row=np.arange(len(store))) for place, (of, store) in enumerate(parts)
    ]
    tiles = (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*SCHEMA.names, "set", "store", "row"])
    )
    rank = {name: number for number, name in enumerate((*SPLITS, UNSPLIT))}
    tiles = tiles.sort_values("set", key=lambda names: names.map(rank).fillna(len(rank)), kind="stable")
    labels = tiles["label"].astype(object).where(tiles["label"].notna(), UNLABELLED)
    labels = labels.map(lambda label: class_map.get(label, label))
    tiles = tiles.assign(
        label=labels,
        code=pd.Index(classes).get_indexer(pd.Index(labels)).astype(np.int64),
        pixels=tiles["tile_id"].astype(str).str.split("-").str[0],
    ).reset_index(drop=True)
    return Sets(stores, tiles, classes, kind, said, lacking=tuple(_remarks(parts, tiles)))


def _remarks(parts: Sequence[Part], tiles: pd.DataFrame) -> Iterator[str]:
    """What a reader should know of the sets beside what is found in them."""
    for of, store in parts if len(parts) > 1 else ():
        name = of if isinstance(of, str) else store.path.name
        if is_unnormalised(names_of(store.path, name)):
            yield (
                f"{name} is without colour normalisation, by its name: where it is of the same slides as another set "
                "here, neither is a test of the other"
            )
    for place, part in tiles[tiles["code"] < 0].groupby("set", sort=False):
        foreign = part[part["label"] != UNLABELLED]
        if unknown := len(part) - len(foreign):
            yield (f"{place} has {counted(unknown, 'tile')} of unknown class, left out of all that asks for a class")
        if len(foreign):
            yield (
                f"{place} has classes that the training store has not, and which are left out of the baselines: "
                f"{joined(sorted(map(str, foreign['label'].unique())))} ({counted(len(foreign), 'tile')}); name their "
                "equals in data.class_map"
            )
