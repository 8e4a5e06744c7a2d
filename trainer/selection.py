"""Which trial is chosen, by validation alone: the cheapest of those within one standard error of the best.

The rule is that of Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.ledger import Record
from trainer.rundir import Json
from trainer.standard_error import Floats, Indices, recall_influences, standard_error


@dataclass(frozen=True)
class Choice:
    """What was chosen, from how many trials, on which split, and how sure that is."""

    of: int
    """Trials that had ended."""
    candidates: int
    """Of those, trials that had come to their last epoch: only they are candidates."""
    split: str
    best: str
    value: float
    standard_error: float
    within: tuple[str, ...]
    """Within one standard error of the best, best first."""
    cheapest: str
    """Of those the one with the fewest layers that learn: the choice."""

    def json(self) -> Json:
        """As search.json has it."""
        return {**asdict(self), "within": list(self.within)}


def choose(
    records: Sequence[Record], mode: str, depth: Callable[[Record], int], standard_error: Callable[[Record], float]
) -> Choice | None:
    """Chooses among the trials that are done; None where none is.

    Args:
        records: all trials.
        mode: max or min, whichever is better.
        depth: a trial's unfrozen depth, by which it costs more.
        standard_error: that of a trial's value.
    """
    sign = {"max": -1, "min": 1}[mode]

    def rank(record: Record) -> tuple[float, int]:
        assert record.value is not None, "it is done"
        return sign * record.value, record.number

    candidates = sorted((record for record in records if record.status == "done"), key=rank)
    if not candidates:
        return None
    best = candidates[0]
    error = standard_error(best)
    within = [record for record in candidates if rank(record)[0] <= rank(best)[0] + error]
    cheapest = min(within, key=lambda record: (depth(record), *rank(record)))
    assert best.value is not None, "it is done"
    return Choice(
        of=sum(record.has_ended for record in records),
        candidates=len(candidates),
        split="val",
        best=best.trial,
        value=best.value,
        standard_error=error,
        within=tuple(record.trial for record in within),
        cheapest=cheapest.trial,
    )


def error_of(metric: str, logits: NDArray[np.floating[Any]], labels: Indices, groups: Indices | None = None) -> float:
    """The standard error of a validation metric, over tiles, or over whole groups where those were drawn.

    Args:
        metric: of `loop.scores`: val/balanced_accuracy, val/accuracy, val/macro_f1 or val/loss.
        logits: (n, classes).
        labels: (n,) class indices.
        groups: (n,) indices of slides or patients; None: each tile is one.
    """
    return standard_error(_INFLUENCES[metric](logits.astype(np.float64), labels), groups)


def _balanced_accuracy(logits: Floats, labels: Indices) -> Floats:
    return recall_influences(_right(logits, labels), labels)


def _accuracy(logits: Floats, labels: Indices) -> Floats:
    right = _right(logits, labels)
    return np.asarray((right - right.mean()) / len(labels))


def _macro_f1(logits: Floats, labels: Indices) -> Floats:
    classes = np.arange(logits.shape[1])
    true, called = labels[:, None] == classes, logits.argmax(axis=1)[:, None] == classes
    there = true.any(axis=0)
    sizes = (true.sum(axis=0) + called.sum(axis=0))[there]
    both, either = (true & called)[:, there], (true.astype(float) + called)[:, there]
    f1 = 2 * both.sum(axis=0) / sizes
    return np.asarray(((2 * both - f1 * either) / sizes).mean(axis=1))


def _loss(logits: Floats, labels: Indices) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return np.asarray((losses - losses.mean()) / len(labels))


def _right(logits: Floats, labels: Indices) -> NDArray[np.bool_]:
    return np.asarray(logits.argmax(axis=1) == labels)


_INFLUENCES: dict[str, Callable[[Any, Any], Floats]] = {
    "val/balanced_accuracy": _balanced_accuracy,
    "val/accuracy": _accuracy,
    "val/macro_f1": _macro_f1,
    "val/loss": _loss,
}
