"""Temperature scaling (Guo, Pleiss, Sun and Weinberger, ICML 2017): one number that makes confidence match accuracy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST, MOST = 0.05, 20.0
"""Ends of the search for the best temperature."""
HALVINGS = 50


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, C) of logits (N, C) over a temperature, in float64 so that confident tiles keep an order.

    Raises:
        ValueError: if a logit is NaN or infinite; the message counts the tiles.
    """
    values = np.asarray(logits, dtype=np.float64) / temperature
    if broken := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(f"{broken} of {len(values)} tiles have logits that are NaN or infinite")
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return normalised


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature T in 0.05 to 20 for which softmax(logits / T) has the least mean log loss.

    The loss is convex in 1 / T, and its slope is found to change sign where the mean logit that the model expects is
    that of the true classes.

    Args:
        logits: (N, C).
        labels: (N,) class indices.

    Returns:
        T; exactly 1, which changes nothing, of no tiles, and where no T within is best: tiles that are all told right,
        or all wrong, ask for more and more confidence, or for less and less.
    """
    if not len(labels):
        return 1.0
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    true = values[np.arange(len(values)), labels].mean()
    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        powers = np.exp(values / math.exp(middle))
        expected = ((powers * values).sum(axis=1) / powers.sum(axis=1)).mean()
        low, high = (low, middle) if expected < true else (middle, high)
    is_within = low > math.log(LEAST) and high < math.log(MOST)
    return math.exp((low + high) / 2) if is_within else 1.0
