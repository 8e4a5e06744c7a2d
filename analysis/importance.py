"""How much each searched field matters for the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.fields import Field
from analysis.search import Search, Trial

if TYPE_CHECKING:
    import optuna

FEWEST = 4
"""Fewer trials tell nothing."""
MANY = 30
"""From this many trials on the order of the fields is more than a guess."""
SEED = 0


@dataclass(frozen=True)
class Importance:
    """What of the score's variance between trials the fields explain."""

    shares: dict[str, float]
    """Of each field on its own, by its name, the largest first; what lacks to 1 is due to several together."""
    trials: int
    stopped: int
    """Those of them that were stopped early, and count with the score that they had."""

    @property
    def is_guess(self) -> bool:
        """Whether the trials are too few to rely on it."""
        return self.trials < MANY


def importance(search: Search, fields: Sequence[Field]) -> Importance | str:
    """Functional analysis of variance over a random forest of the trials that have a score (Hutter, Hoos and
    Leyton-Brown, ICML 2014), as Optuna computes it; or why there is none.

    Fields stand on their own axes, so of a learning rate each order of magnitude counts alike.
    """
    if len(fields) == 1:
        return "There is one field, which explains what there is to explain."
    trials = [
        trial
        for trial in search.trials
        if trial.status in ("done", "stopped") and trial.value is not None and _has_all(trial, fields)
    ]
    if len(trials) < FEWEST:
        few = f"there are {len(trials)}"
        return f"It needs {FEWEST} trials that ended with a score, and says little below {MANY}; {few}."
    if len({trial.value for trial in trials}) == 1:
        return "All trials have the same score."
    try:
        shares = _fanova(trials, fields)
    except RuntimeError:  # no tree found a difference
        return "The scores do not follow the searched fields."
    ordered = sorted(fields, key=lambda field: -shares[field.key])
    return Importance(
        {field.name: shares[field.key] for field in ordered},
        len(trials),
        sum(trial.status == "stopped" for trial in trials),
    )


def _has_all(trial: Trial, fields: Sequence[Field]) -> bool:
    """Whether each of its values has a place on its axis."""
    return not any(math.isnan(field.position(trial.parameters.get(field.key))) for field in fields)


def _fanova(trials: Sequence[Trial], fields: Sequence[Field]) -> dict[str, float]:
    """Shares of variance by dotted key."""
    import optuna  # slow to import

    distributions = {field.key: _distribution(field) for field in fields}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        for trial in trials:
            values = {field.key: _coordinate(field, trial.parameters[field.key]) for field in fields}
            study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=trial.value))
        return dict(optuna.importance.FanovaImportanceEvaluator(seed=SEED).evaluate(study))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(field: Field) -> optuna.distributions.BaseDistribution:
    """Where a field may lie: each of a few values counts alike, however far they are apart."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if field.scale == "categories":
        return CategoricalDistribution(range(len(field.values)))
    return IntDistribution(0, len(field.values) - 1) if field.values else FloatDistribution(*field.ends)


def _coordinate(field: Field, value: Any) -> float | int:
    if field.values:
        return field.values.index(value)
    low, high = field.ends
    return min(high, max(low, field.position(value)))  # rounding may put an end outside
