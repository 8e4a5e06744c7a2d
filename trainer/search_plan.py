"""Everything about a search that can be decided, and refused, before a trial starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

from trainer.concurrency import Concurrency, concurrency
from trainer.config import IDENTITY_DEFAULTS as RUN_DEFAULTS
from trainer.config import Config, SearchSection, identity, with_options
from trainer.data import RunData
from trainer.errors import Problems, UsageError
from trainer.identity import check_same, derived_name
from trainer.job import job_id
from trainer.ledger import Record
from trainer.plan import Plan, ema_warnings, kept, make_plan, trainable
from trainer.rundir import Json, RunDir, SearchDir, now
from trainer.scale import Machine, Scale
from trainer.searchers import GridSearch, RandomSearch, Searcher, Tpe
from trainer.space import Parameters, Space
from trainer.trunk import shares_trunk, together, trunk_of
from trainer.weights import Base

DEPTH = "model.unfrozen_depth"
FREE = {"trials", "retries", "final_seeds", "share_trunk"}
"""Options of a search that may change when it goes on."""
SETTLED = ("precision", "micro_batch")
"""Options of `loop` that the first start resolves, for all trials and for good."""
ONECYCLE_RISES = 0.3
"""Share of the steps in which onecycle raises the learning rate."""


@dataclass(frozen=True)
class SearchPlan:
    """A search, resolved for the machine that it starts on."""

    config: Config
    search: SearchDir
    space: Space
    total: int
    place: Concurrency
    """Of the trials; those that share a trunk count as one."""
    final_place: Concurrency
    machine: Machine
    one: Plan
    """The base configuration as a run."""
    class_map: Mapping[str, str]
    """What trials have of it: the classes of the training store, the only one that they open."""

    @property
    def metric(self) -> str:
        """What trials are judged by, on validation."""
        return self.config.loop.best_metric

    @property
    def mode(self) -> str:
        """Whether more of it is better, or less."""
        return "min" if self.metric.endswith("loss") else "max"

    @property
    def identity(self) -> Json:
        """What must agree when the search is started again, by dotted key."""
        fixed = {key: value for key, value in identity(self.config).items() if key not in self.space.options}
        weights = {} if "model.weights" in self.space.options else {"model.weights": self.one.base_sha256}
        learned_from = {**self.one.fingerprints, **weights, "classes": list(self.one.classes)}
        return {**_fixed(self.config.search), **fixed, **learned_from}

    def as_begun(self, begun: Json) -> SearchPlan:
        """The plan with the precision and the micro-batch that its first start settled, as search.json keeps them.

        Raises:
            UsageError: where others are asked for now, or another search.
        """
        check_same(self.search, begun["identity"], self.identity, IDENTITY_DEFAULTS)
        known = {option: kept(begun, option, self.config, self.search) for option in SETTLED}
        return replace(self, one=replace(self.one, **{option: value for option, value in known.items() if value}))

    @property
    def epochs(self) -> int:
        """The most that a trial can have."""
        return max(config.loop.epochs for config in self._extremes("loop.epochs"))

    @property
    def warm_up(self) -> int:
        """Epochs in which a trial's learning rate may still be rising."""
        found = [config.optim.warmup_epochs for config in self._extremes("optim.warmup_epochs")]
        if any(config.optim.schedule == "onecycle" for config in self._extremes("optim.schedule")):
            found.append(ONECYCLE_RISES * self.epochs)
        return math.ceil(max(found))

    @property
    def grace(self) -> int:
        """Epochs that every trial gets before it may be stopped early."""
        return min(self.epochs, self.warm_up + self.config.search.grace_epochs)

    def ema_warnings(self, tiles: int) -> list[str]:
        """Says where trials would be judged by averages that have hardly left their start, of `tiles` to train on."""
        slowest = max(self._extremes("optim.ema"), key=lambda config: config.optim.ema)
        return ema_warnings(slowest, tiles, None if self.config.search.scheduler == "none" else self.grace)

    @property
    def shares_trunk(self) -> bool:
        """Whether trials that differ in their heads alone train together."""
        return shares_trunk(self.config.search)

    def trunk(self, parameters: Parameters) -> str | None:
        """What a trial with these parameters has in common with those that can train with it, if there can be some."""
        return trunk_of(parameters, self.depth(parameters))

    def groups(self) -> list[list[Parameters]]:
        """The parameters of all trials, those together that train together, where they do not depend on results."""
        return _groups(self.config, self.known_parameters())

    def make_searcher(self, known: int) -> Searcher:
        """What chooses the parameters of trials; `known`: how many have been proposed already."""
        if self.config.search.searcher == "optuna":
            return Tpe(self.space, self.config.run.seed, self.mode, known)
        return _independent(self.config, self.space)

    def trial_config(self, run: RunDir, parameters: Parameters) -> Config:
        """A trial's configuration, which is that of a run without external or test data.

        Raises:
            UsageError: where the parameters do not go together.
        """
        apart = {"data.external": {}, "data.evaluate_test": False, "data.class_map": self.class_map}
        return self._run_config(run, {**parameters, **apart}, self.place.scale)

    def final_config(self, run: RunDir, parameters: Parameters, seed: int) -> Config:
        """The same with another seed, on the same split, and with what it is to be tested on at last."""
        return self._run_config(run, {**parameters, "run.seed": seed}, self.final_place.scale)

    def checkpoints_bytes(self) -> int:
        """What checkpoints of trials and final runs take at most; those not known yet are taken for the largest."""
        known = [with_options(self.config, parameters, "search.space") for parameters in self.known_parameters()]
        largest = max(map(self._checkpoint_bytes, self._extremes(DEPTH, "optim.name", "optim.ema")))
        unknown = self.total - len(known) + self.config.search.final_seeds
        return self.config.loop.keep * (sum(map(self._checkpoint_bytes, known)) + unknown * largest)

    def _checkpoint_bytes(self, config: Config) -> int:
        return trainable(replace(self.one, config=config))[1]

    def final_seeds(self, parameters: Parameters) -> list[int]:
        """The seeds of the final runs: none that was used in the search."""
        used = {self.seed(parameters), *(config.run.seed for config in self._extremes("run.seed"))}
        return [max(used) + place for place in range(1, self.config.search.final_seeds + 1)]

    def seed(self, parameters: Parameters) -> int:
        """The seed of a trial with these parameters."""
        return int(parameters.get("run.seed", self.config.run.seed))

    def record(self, run: RunDir, trial: str, number: int, parameters: Parameters) -> Record:
        """What there is to know of a trial before it begins."""
        epochs = int(parameters.get("loop.epochs", self.config.loop.epochs))
        return Record(run.name, trial, number, self.seed(parameters), parameters, epochs)

    def depth(self, parameters: Parameters) -> int:
        """The unfrozen depth of a trial with these parameters."""
        return _depth(self.config, parameters)

    def known_parameters(self) -> list[Parameters]:
        """Those of all trials, where they do not depend on results."""
        return _known_parameters(self.config, self.space, self.total)

    def settings(self) -> Json:
        """What search.json says of the newest start; it may change."""
        scale = self.place.scale
        return {
            "trials": self.total,
            "final_seeds": self.config.search.final_seeds,
            "config": self.config.model_dump(mode="json"),
            "scale": {
                "workers": scale.workers,
                "threads": scale.threads,
                "gpu": scale.gpu,
                "gpus_per_worker": scale.gpus_per_worker,
                "concurrent": self.place.trials,
            },
        }

    def description(self, data: RunData) -> Json:
        """What search.json says of what the search is."""
        asked, val = self.config.search, data.index("val")
        return {
            "search": self.search.name,
            "created": now(),
            "job": job_id(),
            "state": "running",
            "space": asked.space,
            "searcher": asked.searcher,
            "scheduler": asked.scheduler,
            "seed": self.config.run.seed,
            "metric": self.metric,
            "mode": self.mode,
            "data": {
                **data.description(),
                "split": self.config.data.split,
                "val_tiles": len(val),
                "val_groups": int(val["group"].nunique()) if self.config.data.split == "group" else None,
            },
            "classes": list(self.one.classes),
            **{option: getattr(self.one, option) for option in SETTLED},
            "identity": self.identity,
            "starts": [],
            "choice": None,
            **self.settings(),
        }

    def _run_config(self, run: RunDir, options: Json, scale: Scale) -> Config:
        data = self.config.data
        given = {
            "data.split_seed": self.config.run.seed if data.split_seed is None else data.split_seed,
            "scale.workers": scale.workers,
            "scale.gpu": scale.gpu,
            "scale.cpus_per_worker": scale.threads,
            **{f"loop.{option}": getattr(self.one, option) for option in SETTLED},
            "run.name": f"{self.search.name}-{run.name}",
            "run.mirror": None,
            **options,
        }
        unsearched = self.config.model_copy(update={"search": SearchSection()})
        return with_options(unsearched, given, f"trial {run.name}")

    def _extremes(self, *keys: str) -> list[Config]:
        """The base configuration with each combination of the extreme values of those options that are searched."""
        searched = {key: self.space.options[key].extremes() for key in keys if key in self.space.options}
        found = []
        for values in product(*searched.values()):
            with suppress(UsageError):  # they need not go together, or with the other options' own values
                found.append(with_options(self.config, dict(zip(searched, values, strict=True)), "search.space"))
        return found or [self.config]


def make_search_plan(config: Config, machine: Machine) -> tuple[SearchPlan, RunData, Base]:
    """Resolves what is `auto` for this machine, opens the data and the starting weights, and checks that it all fits.

    Raises:
        UsageError: naming what does not fit and the remedy.
    """
    asked, problems = config.search, Problems()
    space = Space.read(asked.space)
    total = len(GridSearch(space)) if asked.searcher == "grid" else asked.trials
    with problems.kept():
        place = concurrency(
            config.scale, machine, len(_groups(config, _known_parameters(config, space, total))) or total
        )
        final_place = concurrency(config.scale, machine, max(1, asked.final_seeds))
    with problems.kept():
        # As a run of one worker, which fits anywhere: what it is on has been looked at above.
        alone = with_options(config, {"scale.workers": 1, "scale.cpus_per_worker": 1}, "search")
        one, data, base = make_plan(alone, machine, place=RunDir(config.run.storage))
    problems.check()
    unusual = {key: value for key, value in _fixed(asked).items() if value != _fixed(SearchSection())[key]}
    name = config.run.name or derived_name(config.data.tiles, "search", {**unusual, "run": one.config_hash})
    search = SearchDir(config.run.storage / name)
    if RunDir(search.path).identity_file.exists():
        raise UsageError(f"run.name: {name} is the name of a run in {config.run.storage}; give the search another")
    named = with_options(config, {"run.name": name}, "search")
    class_map = {name: other for name, other in config.data.class_map.items() if name in data.store.classes}
    plan = SearchPlan(named, search, space, total, place, final_place, machine, one, class_map)
    for number, parameters in enumerate(plan.known_parameters(), 1):
        with problems.kept():
            plan.trial_config(plan.search.trial(number), parameters)
    with problems.kept():  # no run of the search has a longer name
        seed = max(plan.final_seeds({}), default=config.run.seed)
        plan.final_config(plan.search.final(plan.search.trial(total).name, seed), {}, seed)
    problems.check()
    return plan, data, base


def _independent(config: Config, space: Space) -> Searcher:
    """The searcher whose proposals do not depend on results."""
    return RandomSearch(space, config.run.seed) if config.search.searcher == "random" else GridSearch(space)


def _known_parameters(config: Config, space: Space, total: int) -> list[Parameters]:
    if config.search.searcher == "optuna":
        return []
    searcher = _independent(config, space)
    return [searcher.propose(number) for number in range(1, total + 1)]


def _depth(config: Config, parameters: Parameters) -> int:
    return int(parameters.get(DEPTH, config.model.unfrozen_depth))


def _groups(config: Config, known: list[Parameters]) -> list[list[Parameters]]:
    """Those together that train together; all apart, where they do not share trunks."""
    if not shares_trunk(config.search):
        return [[parameters] for parameters in known]
    return together(known, lambda parameters: trunk_of(parameters, _depth(config, parameters)))


def _fixed(asked: SearchSection) -> Json:
    """The options of a search that may not change when it goes on, by dotted key."""
    return {f"search.{key}": value for key, value in asked.model_dump(mode="json", exclude=FREE).items()}


IDENTITY_DEFAULTS = {**RUN_DEFAULTS, **_fixed(SearchSection())}
"""The identity of a search of a run that was given no options."""
