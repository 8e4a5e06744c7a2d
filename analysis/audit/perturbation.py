"""How a run's model bears other stains and other light: its accuracy on validation tiles that were recoloured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.audit.findings import NOTE, WARNING, Finding
from analysis.audit.sets import VAL, Sets
from analysis.collect import Run
from analysis.evaluation import group_indices
from analysis.scores import balanced_accuracy_interval
from trainer.checkpoint import load_best_model
from trainer.config import load_config
from trainer.tiles.augment import evaluation_batch
from trainer.tiles.colour import jitter_stain

TILES = 200
"""Validation tiles that are recoloured, unless asked for more or fewer."""
SEED = 0
BATCH = 16
FALL = 0.05
"""Loss of balanced accuracy from which a perturbation is a warning."""
STAINS = ("haematoxylin", "eosin")


@dataclass(frozen=True)
class Perturbation:
    """One way to recolour tiles: `factor` times as bright, or times as much of a stain."""

    what: str
    factor: float

    def of(self, tiles: NDArray[np.uint8]) -> Tensor:
        """Recoloured tiles, (N, H, W, 3) uint8 as they came: rounded to 8 bits as a scanner would."""
        image = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(torch.float32) / 255
        if self.what in STAINS:
            shifts = torch.zeros(len(tiles), 2, 3)
            shifts[:, 0, STAINS.index(self.what)] = self.factor - 1
            image = jitter_stain(image, shifts)
        elif self.what == "brightness":
            image = (self.factor * image).clamp(0, 1)
        return (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


PERTURBATIONS = (
    Perturbation("as they are", 1.0),
    *(Perturbation("brightness", factor) for factor in (0.8, 0.9, 1.1, 1.2)),
    *(Perturbation(stain, factor) for stain in STAINS for factor in (0.7, 1.3)),
)
COLUMNS = ("perturbation", "factor", "tiles", "balanced accuracy", "low", "high", "changed")


def passes(sets: Sets, tiles: int = TILES) -> int:
    """How many tiles go through the network for `perturb`."""
    return len(PERTURBATIONS) * len(_chosen(sets, tiles))


def perturb(run: Run, sets: Sets, tiles: int = TILES, advance: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Scores the best checkpoint on recoloured validation tiles.

    One row a perturbation: `perturbation, factor, tiles`; `balanced accuracy` with its 95 % interval from `low` to
    `high`; `changed`, the share of tiles that get another class than as they are. At most `tiles` are drawn, with a
    fixed seed, as equally from the classes as can be. Stains are taken apart by Ruifrok and Johnston's matrix, as for
    augmentation. On the CPU, in fp32. No rows where there are no validation tiles.

    Raises:
        RunError, UsageError: if the run has no good checkpoint.
    """
    chosen = _chosen(sets, tiles)
    if not len(chosen):
        return pd.DataFrame(columns=list(COLUMNS))
    model = load_best_model(run.directory)
    augment = load_config(run.directory.config_file).augment
    rows = sets.tiles.iloc[chosen]
    labels, groups = rows["code"].to_numpy(), group_indices(rows["group"])
    store = sets.stores[rows["store"].iloc[0]].tiles
    predicted = np.empty((len(PERTURBATIONS), len(chosen)), np.int64)
    for start in range(0, len(chosen), BATCH):
        batch = store[rows["row"].to_numpy()[start : start + BATCH]]
        for number, perturbation in enumerate(PERTURBATIONS):
            with torch.inference_mode():
                logits = model(evaluation_batch(perturbation.of(batch), augment))
            predicted[number, start : start + BATCH] = logits.argmax(dim=1).numpy()
            if advance:
                advance(len(batch))
    scores = [balanced_accuracy_interval(labels, each, groups) for each in predicted]
    return pd.DataFrame(
        [
            (
                each.what,
                each.factor,
                len(chosen),
                score.value,
                score.low,
                score.high,
                float((own != predicted[0]).mean()),
            )
            for each, score, own in zip(PERTURBATIONS, scores, predicted, strict=True)
        ],
        columns=list(COLUMNS),
    )


def _chosen(sets: Sets, tiles: int) -> NDArray[np.int64]:
    """Validation tiles of known classes, taking turns over the classes."""
    there = np.flatnonzero(sets.of(VAL) & (sets.tiles["code"] >= 0).to_numpy())
    shuffled = np.random.default_rng(SEED).permutation(there)
    turn = pd.Series(shuffled).groupby(sets.tiles["code"].to_numpy()[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:tiles]])


def judge_perturbation(perturbation: pd.DataFrame) -> Iterator[Finding]:
    """A sentence on brightness and on each stain: the lowest score, and whether it falls by 0.05 or more."""
    if perturbation.empty:
        return
    plain = perturbation.iloc[0]
    for what, rows in perturbation.iloc[1:].groupby("perturbation", sort=False):
        worst = rows.iloc[int(rows["balanced accuracy"].to_numpy().argmin())]
        fall = plain["balanced accuracy"] - worst["balanced accuracy"]
        factors = " or ".join(f"{factor:g}" for factor in rows["factor"])
        text = (
            f"with {factors} times the {what} the model's balanced accuracy on {plain['tiles']} validation tiles is at "
            f"least {worst['balanced accuracy']:.2f} (as they are: {plain['balanced accuracy']:.2f}); the lowest is at "
            f"{worst['factor']:g}, where {worst['changed']:.0%} of the tiles get another class"
        )
        yield Finding(WARNING if fall >= FALL else NOTE, "perturbation", text)
