"""How much wider an interval would be if it were known which tiles are of one slide or patient."""

from __future__ import annotations

import math

CORRELATIONS = (0.01, 0.05, 0.1)
"""Intra-cluster correlations of being right, from hardly to be seen to strong."""


def widening(tiles: int, patients: int, correlation: float) -> float:
    """By which factor an interval of a mean over tiles is too narrow: the root of Kish's design effect.

    sqrt(1 + (tiles / patients - 1) * correlation), for patients of as many tiles each; it is more where some have many
    (Kish, Survey Sampling, 1965).
    """
    return math.sqrt(1 + (tiles / patients - 1) * correlation)
