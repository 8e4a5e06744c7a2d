"""What a model would reach that saw no morphology: logistic regressions on colour, file size and compression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.audit.findings import NOTE, WARNING, Finding
from analysis.audit.measure import BINS, Measures
from analysis.audit.sets import TRAIN, VAL, Sets
from analysis.evaluation import group_indices
from analysis.kinds import EXTERNAL
from analysis.scores import Indices, balanced_accuracy_interval
from trainer.wording import counted

Features = NDArray[np.float64]
MAJORITY, MEAN_COLOUR, HISTOGRAM, KERNEL, FILE_SIZE, BLOCKINESS = (
    "majority",
    "mean colour",
    "colour histogram",
    "colour histogram, kernel",
    "file size",
    "blockiness",
)
WORDS = {
    (HISTOGRAM, KERNEL): "colour alone (a histogram)",
    (FILE_SIZE,): "the file's size alone",
    (BLOCKINESS,): "JPEG's 8-pixel grid alone",
}
"""What a sentence is about. Of several regressions on the same, each set has its better one, which is named."""
REGRESSIONS = {HISTOGRAM: "linear, ", KERNEL: "kernel, "}
COLUMNS = ("baseline", "set", "split", "tiles", "classes", "balanced accuracy", "low", "high", "low by tile", "chance")


def features(sets: Sets, measures: Measures) -> dict[str, Features]:
    """What each baseline sees of every tile, (N, k) by its name.

    Majority: nothing. Mean colour: 3 means. Colour histogram: square roots of 16 bins of each channel. File size: the
    logarithm of the source file's bytes. Blockiness: the logarithms of both of `blockiness.blockiness`.
    """
    return {
        MAJORITY: np.zeros((len(sets.tiles), 1)),
        MEAN_COLOUR: measures.mean.astype(np.float64),
        HISTOGRAM: histograms(measures),
        KERNEL: histograms(measures),
        FILE_SIZE: np.log(sets.tiles[["source_bytes"]].to_numpy(dtype=np.float64).clip(min=1)),
        BLOCKINESS: np.log(measures.blockiness.astype(np.float64)),
    }


def histograms(measures: Measures) -> Features:
    """(N, 48) square roots of the shares of each bin: distances between them are Hellinger's."""
    return np.sqrt(measures.histogram.reshape(len(measures.histogram), -1).astype(np.float64))


def regression() -> Pipeline:
    """The classifier of a baseline: standardised features, L2 with C = 1, classes weighted to count the same."""
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))


def kernel_regression(tiles: int) -> Pipeline:
    """The same after a Gaussian kernel, as a network need not stay linear in colour either: its distances to at most
    300 of the training `tiles` (Williams and Seeger, NIPS 2000), C = 100."""
    kernel = Nystroem(gamma=1 / (3 * BINS), n_components=min(300, tiles), random_state=0)
    logistic = LogisticRegression(C=100, class_weight="balanced", max_iter=500)
    return make_pipeline(StandardScaler(), kernel, logistic)


def score_shortcuts(sets: Sets, measures: Measures) -> pd.DataFrame:
    """Each baseline, trained on the training set, on validation and on each external set.

    `baseline, set, split` (its kind), `tiles, classes` (those that the set has tiles of); `balanced accuracy` with the
    95 % interval from `low` to `high`, by group where groups are known; `low by tile`, its low end if tiles were
    independent; `chance`: one over the number of classes in
    training. Without validation tiles or with a single class there are no rows. Tiles of classes that training lacks
    are left out.
    """
    code = sets.tiles["code"].to_numpy()
    learned = sets.of(TRAIN) & (code >= 0)
    known = len(np.unique(code[learned]))
    rows = []
    for baseline, seen in features(sets, measures).items() if known > 1 else ():
        predict = _fitted(baseline, seen[learned], code[learned])
        for name in (VAL, *sets.external):
            scored = sets.of(name) & (code >= 0)
            if scored.any():
                said = code[scored], predict(seen[scored])
                interval = balanced_accuracy_interval(*said, group_indices(sets.tiles["group"][scored]))
                by_tile = balanced_accuracy_interval(*said)
                kind = EXTERNAL if name in sets.external else sets.kind
                present = len(np.unique(code[scored]))
                score = (interval.value, interval.low, interval.high, by_tile.low, 1 / known)
                rows.append((baseline, name, kind, int(scored.sum()), present, *score))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@contextmanager
def may_end_early() -> Iterator[None]:
    """Lets a regression end after its last iteration, a little below its best, without a word of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _fitted(baseline: str, seen: Features, code: Indices) -> Callable[[Features], Indices]:
    if baseline == MAJORITY:
        most = int(np.bincount(code).argmax())
        return lambda of: np.full(len(of), most)
    model = kernel_regression(len(code)) if baseline == KERNEL else regression()
    with may_end_early():
        model.fit(seen, code)
    return lambda of: np.asarray(model.predict(of))


def judge_shortcuts(sets: Sets, shortcuts: pd.DataFrame) -> Iterator[Finding]:
    """A sentence a baseline. A warning where on some set it is beyond doubt of the tiles there (`low by tile`) that it
    is 0.1 better than chance, for JPEG's grid, which no tissue has; or half the way from chance to perfection, for what
    tissue has, too. Else a note."""
    if shortcuts.empty:
        reason = sets.said if not sets.of(VAL).any() else "training has a single class"
        yield Finding(NOTE, "shortcuts", f"there are no shortcut baselines: {reason}")
    for baselines, wording in WORDS.items():
        rows = shortcuts[shortcuts["baseline"].isin(baselines)]
        if rows.empty:
            continue
        best = rows.loc[rows.groupby("set", sort=False)["balanced accuracy"].idxmax()]
        chance = float(best["chance"].iloc[0])
        enough = chance + 0.1 if BLOCKINESS in baselines else (1 + chance) / 2
        is_plain = bool((best["low by tile"] > enough).any())
        scores = " and ".join(
            f"{row['balanced accuracy']:.2f} on {row['set']} ({REGRESSIONS.get(row['baseline'], '')}{row['split']}, "
            f"{counted(row['tiles'], 'tile')})"
            for row in best.to_dict("records")
        )
        text = f"{wording} reaches a balanced accuracy of {scores}; chance is {chance:.2f}"
        yield Finding(WARNING if is_plain else NOTE, "shortcuts", text)
