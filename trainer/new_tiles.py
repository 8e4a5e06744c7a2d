"""Tiles that a run has not seen: opened or packed, compared with those that it was trained on, and labelled."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from trainer.errors import Problems, UsageError
from trainer.tiles.fill import likely_size
from trainer.tiles.meta import META
from trainer.tiles.pack import PackOptions, pack
from trainer.tiles.scan import scan
from trainer.tiles.stain import FAR, Difference, differences, measure, sample
from trainer.tiles.store import TileStore
from trainer.trained import TrainedRun
from trainer.wording import counted, joined

SAME_SCALE = 0.05
"""By how much microns per pixel may differ and still be taken for the same."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Where tiles come from: `digest` tells one input from another, without reading images."""

    path: Path
    digest: str
    is_store: bool
    tile_size: Size
    mpp: float | None
    labels: frozenset[str]
    """The names that stand for classes in it, if they do."""

    @property
    def is_tree(self) -> bool:
        """Whether labels are the names of folders, if anything."""
        return not self.is_store and self.path.suffix.lower() not in (".csv", ".parquet")


def look_at(path: Path, mpp: float | None) -> Source:
    """A store, or what else tiles can be packed from, before anything is read but names, and a few images for the size.

    Raises:
        UsageError: where there are no tiles, or `mpp` contradicts the store.
    """
    if (path / META).is_file():
        store = TileStore.open(path)
        if mpp and store.mpp and not _same_scale(mpp, store.mpp):
            raise UsageError(f"--mpp {mpp:g}: {path} says that it has {store.mpp:g}; leave it out, or pack it again")
        labels = frozenset(store.index["label"].dropna())
        return Source(path, store.fingerprint, True, store.tile_size, store.mpp or mpp, labels)
    PackOptions(mpp=mpp).check(path)
    found = scan(path, "optional")
    labels = frozenset(file.label for file in found.files if file.label)
    return Source(path, found.digest, False, likely_size(found), mpp, labels)


def open_store(source: Source, place: Path, check: Callable[[], object]) -> TileStore:
    """The tiles of a source, packed to `place` where they are not a store already; `check` may end that."""
    if source.is_store:
        return TileStore.open(source.path)
    pack(source.path, place, PackOptions(mpp=source.mpp, labels="optional"), check=check)
    return TileStore.open(place)


def window(source: Source, trained: TrainedRun, *, resample: bool) -> Size:
    """The height and width, in px, of the middle part of each tile that the network is to see.

    It is the whole tile where tiles are as the run's. Where they are not, and may be resampled, it is the piece of
    tissue that the run's tiles show: the evaluation transform resizes it as it does those.

    Raises:
        UsageError: naming both sizes and scales, where they differ and tiles may not be resampled, or cannot be.
    """
    size, expected = source.tile_size, trained.tile_size
    scale_known = source.mpp is not None and trained.mpp is not None
    same_scale = source.mpp is None or trained.mpp is None or _same_scale(source.mpp, trained.mpp)
    if (expected is None or size == expected) and same_scale:
        return size
    other = (
        f"{source.path} has tiles of {describe(size, source.mpp)}, and run {trained.run.name} was trained on "
        f"{describe(expected, trained.mpp)}"
    )
    if not resample:
        raise UsageError(
            f"{other}: its predictions would mean nothing. --resample looks at as much tissue as those show, resized "
            "(whole tiles, where microns per pixel are unknown); or pack them at that size and scale"
        )
    if expected is None and not same_scale:
        raise UsageError(f"{other}: how much tissue its tiles show is not known, so no piece of these can be as large")
    if scale_known and expected is not None and source.mpp and trained.mpp:
        wanted = tuple(round(side * trained.mpp / source.mpp) for side in expected)
        if any(want > side * (1 + SAME_SCALE) for want, side in zip(wanted, size, strict=True)):
            raise UsageError(f"{other}: they show less tissue than those, which no resampling makes up for")
        return min(wanted[0], size[0]), min(wanted[1], size[1])
    if expected is not None and abs(size[0] * expected[1] / (size[1] * expected[0]) - 1) > SAME_SCALE:
        raise UsageError(f"{other}: they are of another shape; give --mpp, so that the same piece of tissue is taken")
    return size


def _same_scale(one: float, other: float) -> bool:
    return abs(one / other - 1) <= SAME_SCALE


def describe(size: Size | None, mpp: float | None) -> str:
    """Size and scale in words; (height, width)."""
    sides = "an unknown size" if size is None else f"{size[1]} x {size[0]} px"
    return f"{sides} at {mpp:g} um/px" if mpp else f"{sides} (microns per pixel unknown)"


def middle(tiles: np.ndarray, size: Size) -> np.ndarray:
    """The middle (height, width) of each of (N, H, W, 3) tiles, without reading them."""
    top, left = ((side - want) // 2 for side, want in zip(tiles.shape[1:3], size, strict=True))
    return tiles[:, top : top + size[0], left : left + size[1]]


def stain_differences(store: TileStore, trained: TrainedRun) -> list[Difference]:
    """How a sample of the tiles differs in stain from the training tiles; nothing where the run does not know these."""
    if (stain := trained.calibration.stain) is None:
        return []
    rows = sample(np.arange(len(store)))
    return differences(stain, measure(store.tiles, rows))


def stain_warnings(found: list[Difference]) -> list[str]:
    """What to say where the stain is far from training's."""
    far = [difference for difference in found if difference.outside > FAR]
    return [
        f"warning: the stain is far from training's: {difference}. What the run reached in validation may not hold here"
        for difference in far
    ]


def labelled(
    store: TileStore, source: Source, trained: TrainedRun, class_map: Mapping[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """The index with the classes as the run calls them, and what there is to say of its labels.

    Other classes keep their name. Folders of which none is called like a class are no class folders, and give no label.
    """
    names = {**trained.config.data.class_map, **class_map}
    given = set(store.index["label"].dropna())
    labels = store.index["label"].map(lambda label: names.get(label, label), na_action="ignore")
    strange = sorted(name for name in given if names.get(name, name) not in trained.classes)
    if source.is_tree and strange and len(strange) == len(given):
        said = [f"folders {joined(strange)} are no classes of the run: their tiles are taken without a label"]
        return store.index.assign(label=None), said
    said = [
        f"{counted(int((labels == name).sum()), 'tile')} labelled {name}, which is no class of the run: scored apart; "
        f"if it is one by another name, --class-map {name}=CLASS says which"
        for name in strange
    ]
    return store.index.assign(label=labels), said


def check_class_map(class_map: Mapping[str, str], source: Source, trained: TrainedRun) -> None:
    """Raises a UsageError where a name is no class of the tiles, or what it stands for none of the run's."""
    problems = Problems()
    for theirs, ours in class_map.items():
        with problems.kept(f"--class-map {theirs}={ours}"):
            if theirs not in source.labels:
                raise UsageError(f"no tiles are labelled {_suggest(theirs, source.labels)}")
            if ours not in trained.classes:
                raise UsageError(f"run {trained.run.name} has no class {_suggest(ours, trained.classes)}")
    problems.check()


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name
