"""Which tiles are trained on, validated on and tested on: by group, stratified by class."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainer.config import DataSection
from trainer.errors import UsageError

SPLITS = ("train", "val", "test")
MOST_FOLDS = 20


def split_tiles(index: pd.DataFrame, data: DataSection, run_seed: int) -> NDArray[np.str_]:
    """The split (train, val or test) of each row of a store's index.

    Raises:
        UsageError: where the store cannot be split as asked, or a class would be missing from a part.
    """
    seed = run_seed if data.split_seed is None else data.split_seed
    splits = {"group": _by_group, "source": _by_source, "random": _by_tile}[data.split](index, data, seed)
    _check_classes(index["label"], splits, data)
    return splits


def _by_group(index: pd.DataFrame, data: DataSection, seed: int) -> NDArray[np.str_]:
    """Whole groups to each part, classes balanced between the parts as far as groups allow."""
    if index["group"].isna().any():
        raise UsageError(
            "data.split: group needs the slide or patient of every tile, and the store has "
            f"{int(index['group'].isna().sum())} tiles without one. Pack from a manifest with a `group` column, "
            "or set data.split: random and know that tiles of one slide then fall on both sides of the split, "
            "which makes every figure optimistic"
        )
    splits = np.full(len(index), "train", dtype="<U5")
    for name, fraction in (
        ("test", data.test_fraction),
        ("val", data.val_fraction / (1 - data.test_fraction)),
    ):
        if fraction:
            rows = np.flatnonzero(splits == "train")
            splits[rows[_group_fold(index.iloc[rows], fraction, seed)]] = name
    return splits


def _group_fold(index: pd.DataFrame, fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows that hold about `fraction` of the tiles, in whole groups: some of up to 20 stratified folds."""
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and workers never split

    labels, groups = index["label"].to_numpy(), index["group"].to_numpy()
    found = len(np.unique(groups))
    folds = min(MOST_FOLDS, found, int(index["label"].value_counts().max()))
    wanted = max(1, round(fraction * folds))
    if wanted >= folds:
        raise UsageError(
            f"data.split: group has {found} group{'s' * (found > 1)} to part, too few for a fraction of {fraction:.2f};"
            " change data.val_fraction or data.test_fraction, or add slides"
        )
    with warnings.catch_warnings():
        # A class that is too small for a part is an error of ours, with a remedy, a little later.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        dealt = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups))
    return np.concatenate([rows for _, rows in dealt[:wanted]])


def _by_source(index: pd.DataFrame, data: DataSection, seed: int) -> NDArray[np.str_]:  # noqa: ARG001
    """What the source said."""
    said = set(index["split"].dropna().unique())
    if index["split"].isna().any() or not said <= set(SPLITS) or not {"train", "val"} <= said:
        raise UsageError(
            "data.split: source needs `train` or `val` (or `test`) for every tile, and both of the first; the store "
            f"has {', '.join(sorted(map(str, said))) or 'none'}. Pack from a manifest with a `split` column"
        )
    return index["split"].to_numpy().astype("<U5")


def _by_tile(index: pd.DataFrame, data: DataSection, seed: int) -> NDArray[np.str_]:
    """Tile by tile, stratified; tiles of equal pixels stay together."""
    from sklearn.model_selection import train_test_split  # slow to import, and workers never split

    pixels = index["tile_id"].str.split("-").str[0]
    originals = np.flatnonzero(~pixels.duplicated().to_numpy())
    labels = index["label"].to_numpy()
    splits = np.full(len(index), "train", dtype="<U5")
    for name, fraction in (
        ("test", data.test_fraction),
        ("val", data.val_fraction / (1 - data.test_fraction)),
    ):
        rows = originals[splits[originals] == "train"]
        if fraction:
            _check_sizes(labels[rows], fraction, name)
            splits[train_test_split(rows, test_size=fraction, random_state=seed, stratify=labels[rows])[1]] = name
    split_of = dict(zip(pixels.iloc[originals], splits[originals], strict=True))
    return pixels.map(split_of).to_numpy().astype("<U5")


def _check_sizes(labels: NDArray[np.object_], fraction: float, part: str) -> None:
    names, counts = np.unique(labels.astype(str), return_counts=True)
    small = [
        f"{name} ({count})"
        for name, count in zip(names, counts, strict=True)
        if count < 2 or not 0.5 <= count * fraction <= count - 0.5
    ]
    # scikit-learn gives every class a tile on both sides only where each side has as many tiles as there are classes.
    taken = math.ceil(len(labels) * fraction)
    if small or min(taken, len(labels) - taken) < len(names):
        raise UsageError(
            f"too few tiles to split off {fraction:.0%} for {part}: {', '.join(small or names)}; add tiles of that "
            f"class, change data.{part}_fraction, or leave the class out of the store"
        )


def _check_classes(labels: pd.Series, splits: NDArray[np.str_], data: DataSection) -> None:
    """Every class must be there in every part, or its metrics and its training mean nothing."""
    problems = [
        f"{part} has no tile of {', '.join(missing)}"
        for part in ("train", "val", *(("test",) if (splits == "test").any() else ()))
        if (missing := sorted(set(labels) - set(labels[splits == part])))
    ]
    if problems:
        unit = "tiles" if data.split == "random" else "groups with tiles"
        raise UsageError(
            f"data.split: {data.split} leaves a class out: {'; '.join(problems)}. Add {unit} of that class, change "
            "data.val_fraction, data.test_fraction or run.seed, or leave the class out of the store"
        )
