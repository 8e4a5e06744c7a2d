"""Several models together: scored one by one, over seeds, and as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import yaml

from analysis.collect import Model, Predictions, Run
from analysis.evaluation import Evaluation
from analysis.kinds import UNKNOWN
from analysis.scores import log_probabilities
from trainer.config import load_config
from trainer.temperature import fit_temperature
from trainer.wording import counted


@dataclass(frozen=True)
class Evaluated:
    """A model with the scores of each of its sets."""

    model: Model
    evaluations: tuple[Evaluation, ...]


def evaluate(model: Model) -> Evaluated:
    """Scores every set of a model."""
    temperature = _temperature(model)
    return Evaluated(model, tuple(Evaluation(each, temperature) for each in model.predictions))


def _temperature(model: Model) -> float | None:
    """What training fitted on validation; of a run that began before it did so, fitted now."""
    if isinstance(model, Run) and model.best and "temperature" in model.best:
        return float(model.best["temperature"])
    for each in model.predictions:
        if each.split == "val" and len(each.labels):
            return fit_temperature(log_probabilities(each.probabilities), each.labels)
    return None


def ensemble(models: Sequence[Model]) -> Model | None:
    """The mean of the models' probabilities, on the sets whose tiles they all predicted; None where there are none."""
    if len(models) < 2:
        return None
    shared = [same for each in models[0].predictions if (same := _of_all(each, models))]
    if not shared:
        return None
    name = f"ensemble of {counted(len(models), 'model')}"
    return replace(_bare(models[0]), name=name, predictions=tuple(map(_mean, shared)))


def _of_all(one: Predictions, models: Sequence[Model]) -> list[Predictions]:
    """What each model says of the tiles of a set, in the same order; empty where one has not predicted them."""
    found = [same for model in models if (same := same_set(one, model))]
    return found if len(found) == len(models) else []


def same_set(one: Predictions, model: Model) -> Predictions | None:
    """What a model says of the tiles of a set, in that one's order of tiles and classes; None where it says nothing.

    In a run a set is known by its name too, in a file of predictions by its tiles alone.
    """
    by_name = (each for each in model.predictions if one.split == each.split or UNKNOWN in (one.kind, each.kind))
    return next((same for each in by_name if (same := each.in_order_of(one)) is not None), None)


def of_other_tiles(models: Sequence[Model]) -> list[str]:
    """What to say of each set that all models have by that name, but not all of the same tiles."""
    shared = set.intersection(*({each.split for each in model.predictions} for model in models))
    return [
        f"{each.split}: not all models have the same tiles there, so nothing is said of them together (runs with "
        "another run.seed draw another split, unless data.split_seed is given)"
        for each in models[0].predictions
        if each.split in shared and not _of_all(each, models)
    ]


def _mean(predictions: Sequence[Predictions]) -> Predictions:
    return replace(predictions[0], probabilities=np.mean([each.probabilities for each in predictions], axis=0))


def _bare(model: Model) -> Model:
    """What any model has, of a run too."""
    return Model(model.name, model.place, model.classes, model.class_names, model.predictions)


def seeds(evaluated: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """The runs of one configuration that differ in their seed, where there are several."""
    groups: dict[str, list[Evaluated]] = {}
    for each in evaluated:
        if isinstance(each.model, Run):
            groups.setdefault(_but_for_the_seed(each.model), []).append(each)
    return [group for group in groups.values() if len(group) > 1]


def _but_for_the_seed(run: Run) -> str:
    config = load_config(run.directory.config_file)
    compared = config.model_dump(mode="json", exclude={"run", "scale", "search"})
    return yaml.safe_dump([compared, run.identity["data"]["tiles"]["fingerprint"]], sort_keys=True)
