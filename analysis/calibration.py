"""Whether confidence can be believed: reliability by confidence, temperature, and accuracy among the most certain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.resampling import BINS, confidence_bin
from analysis.scores import Floats, Indices, log_probabilities, wilson
from trainer.temperature import softmax


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence, in bins of equal width; every array has one entry for each bin that has tiles."""

    tiles: Indices
    confidence: Floats
    """Mean of the highest probability."""
    accuracy: Floats
    low: Floats
    high: Floats
    """Wilson's 95 % interval of the accuracy, as if tiles were independent."""


def reliability(labels: Indices, probabilities: Floats) -> Reliability:
    """The reliability diagram of the highest probability (DeGroot and Fienberg, The Statistician 32, 1983).

    Args:
        labels: (N,) class indices.
        probabilities: (N, C).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = confidence_bin(confidence)
    tiles, sums, hits = (np.bincount(place, each, BINS) for each in (None, confidence, right))
    there = tiles > 0
    tiles, accuracy = tiles[there].astype(np.int64), hits[there] / tiles[there]
    ends = np.array([wilson(share, size) for share, size in zip(accuracy, tiles, strict=True)])
    return Reliability(tiles, sums[there] / tiles, accuracy, *ends.reshape(-1, 2).T)


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities (N, C) that softmax(logits / temperature) gives, from those at temperature 1."""
    return softmax(log_probabilities(probabilities), temperature)


@dataclass(frozen=True)
class Selective:
    """Accuracy if only the most certain tiles are told and the others are left to a person."""

    coverage: Floats
    """Share of the tiles that are told, rising to 1."""
    accuracy: Floats
    """Among those."""


def selective_accuracy(labels: Indices, probabilities: Floats) -> Selective:
    """Accuracy against coverage, by the highest probability (El-Yaniv and Wiener, JMLR 11, 2010).

    Tiles of one confidence are told together, or not at all.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C).
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    told = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1) + 1
    right = np.cumsum((probabilities.argmax(axis=1) == labels)[order])[told - 1]
    return Selective(told / len(labels), right / told)
