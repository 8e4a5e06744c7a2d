"""What a search tries next: at random, all there is, or by what it has learned (Optuna's TPE, in memory alone)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trainer.space import Interval, Options, Parameters, Space


class Searcher(Protocol):
    """Chooses the parameters of trials, which are numbered from 1."""

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        ...

    def take_in(self, number: int, parameters: Parameters) -> None:
        """Takes in a trial that an earlier start proposed."""
        ...

    def learn(self, number: int, values: Sequence[float], status: str) -> None:
        """Learns how a trial ended, and its value after each epoch."""
        ...


class RandomSearch:
    """Each trial's parameters are a function of seed and number alone."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        return self._space.sample(np.random.default_rng([self._seed, number]))

    def take_in(self, number: int, parameters: Parameters) -> None:
        """Nothing follows from it."""

    def learn(self, number: int, values: Sequence[float], status: str) -> None:
        """Nothing is learned."""


class GridSearch:
    """Every combination once."""

    def __init__(self, space: Space):
        self._all = list(space.combinations())

    def __len__(self) -> int:
        return len(self._all)

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        return self._all[number - 1]

    def take_in(self, number: int, parameters: Parameters) -> None:
        """Nothing follows from it."""

    def learn(self, number: int, values: Sequence[float], status: str) -> None:
        """Nothing is learned."""


class Tpe:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it.

    Trials that were stopped early are told as such, with all they reached; one that diverged before it had a value
    counts as the worst. From one that failed, which says nothing of its parameters, nothing is learned.
    """

    def __init__(self, space: Space, seed: int, mode: str, known: int = 0):
        """`known`: trials that earlier starts proposed, so that a restart does not draw what they drew."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space = space
        self._distributions = {key: self._distribution(values) for key, values in space.options.items()}
        state = int(np.random.SeedSequence([seed, known]).generate_state(1)[0])
        # Whoever runs at the same time is taken for bad (constant_liar), so that not all try the same place.
        sampler = optuna.samplers.TPESampler(seed=state, constant_liar=True)
        direction = optuna.study.StudyDirection.MAXIMIZE if mode == "max" else optuna.study.StudyDirection.MINIMIZE
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._asked: dict[int, Any] = {}

    def propose(self, number: int) -> Parameters:
        """The parameters of this trial."""
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {key: self._value(key, trial.params[key]) for key in self._space.options}

    def take_in(self, number: int, parameters: Parameters) -> None:
        """Takes in a trial that an earlier start proposed; it runs until it is told of."""
        self._study.enqueue_trial({key: self._told(key, value) for key, value in parameters.items()})
        self._asked[number] = self._study.ask(self._distributions)

    def learn(self, number: int, values: Sequence[float], status: str) -> None:
        """Learns how a trial ended."""
        trial, states = self._asked.pop(number), self._optuna.trial.TrialState
        found = [value for value in values if math.isfinite(value)]
        if status == "failed":
            self._study.tell(trial, state=states.FAIL)
        elif status == "done" and found:
            best = {"MAXIMIZE": max, "MINIMIZE": min}[self._study.direction.name]
            self._study.tell(trial, best(found))
        else:
            for epoch, value in enumerate(found, 1):
                trial.report(value, epoch)
            self._study.tell(trial, state=states.PRUNED)

    def _distribution(self, values: Interval | Options) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, Options):
            # Places in the list, since Optuna's own choices cannot be lists.
            return kinds.CategoricalDistribution(range(len(values.values)))
        if values.step is not None and not values.log:
            return kinds.IntDistribution(0, values.steps)
        return kinds.FloatDistribution(values.low, values.high, log=values.log)  # what it proposes is rounded

    def _value(self, key: str, told: Any) -> Any:
        """The value that Optuna's parameter stands for."""
        values = self._space.options[key]
        if isinstance(values, Options):
            return values.values[told]
        is_step = values.step is not None and not values.log
        return values.nearest(values.low + values.step * told if is_step else told)

    def _told(self, key: str, value: Any) -> Any:
        """Optuna's parameter for a value."""
        values = self._space.options[key]
        if isinstance(values, Options):
            return values.values.index(value)
        is_step = values.step is not None and not values.log
        return round((value - values.low) / values.step) if is_step else float(value)
