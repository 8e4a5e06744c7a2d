"""What a search trains, one after another: its trials, then its choice with new seeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Protocol

from trainer.config import Config, dump
from trainer.durable import write_atomic
from trainer.errors import UsageError
from trainer.ledger import Ledger, Record
from trainer.rundir import RunDir
from trainer.search_plan import SearchPlan
from trainer.trunk import together

Ended = Callable[[Record], None]


class Jobs(Protocol):
    """Runs that are to be trained."""

    what: str
    """What one of them is called."""
    ledger: Ledger
    total: int
    """At most so many are left."""
    begun: int
    """So many of those were begun before."""

    def next(self) -> list[RunDir]:
        """The run directory of the next one, which has its configuration, or of several that train together.

        Empty where there are none any more.
        """
        ...

    def ended(self, name: str) -> None:
        """Is told of each that has ended."""
        ...


class TrialJobs:
    """Trials that were begun go first; then the searcher proposes, up to the number asked for.

    Where trials share trunks, all that are left are proposed at once.
    """

    what = "trial"

    def __init__(self, plan: SearchPlan, ledger: Ledger, ended: Ended):
        records = ledger.records()
        self.plan, self.ledger, self._ended = plan, ledger, ended
        self._begun = [record for record in records if not record.has_ended]
        self._number = max((record.number for record in records), default=0)
        self._searcher = plan.make_searcher(self._number)
        self.begun = len(self._begun)
        self.total = self.begun + max(0, plan.total - self._number)
        for record in records:
            self._searcher.take_in(record.number, record.parameters)
            if record.has_ended:
                self._learn(record)
        self._left = self._groups() if plan.shares_trunk else ([record] for record in self._in_turn())

    def next(self) -> list[RunDir]:
        """The run directories of the next trials; none where all have been tried."""
        for records in self._left:
            if runs := [self.ledger.run(record.trial) for record in records if self._can_be(record)]:
                return runs
        return []

    @property
    def all_ended(self) -> bool:
        """Whether all trials that were asked for have begun, and ended."""
        return self._number >= self.plan.total and all(record.has_ended for record in self.ledger.records())

    def ended(self, name: str) -> None:
        """Has the searcher learn from a trial."""
        record = self.ledger.record(name)
        if record.has_ended:
            self._learn(record)
        self._ended(record)

    def _in_turn(self) -> Iterator[Record]:
        yield from self._begun
        while self._number < self.plan.total:
            self._number += 1
            run, parameters = self.plan.search.trial(self._number), self._searcher.propose(self._number)
            record = self.plan.record(run, run.name, self._number, parameters)
            self.ledger.add(run, record)
            yield record

    def _groups(self) -> Iterator[list[Record]]:
        yield from together(self._in_turn(), self._trunk)

    def _trunk(self, record: Record) -> Hashable | None:
        """What a trial has in common with those that it can train with; a trial that has begun keeps its parts."""
        trunk, run = self.plan.trunk(record.parameters), self.ledger.run(record.trial)
        begun = run.read_identity() if run.identity_file.exists() else {}
        return trunk and (trunk, begun.get("precision"), begun.get("micro_batch"))

    def _can_be(self, record: Record) -> bool:
        """Writes a trial's configuration down; one whose options do not go together has failed."""
        run = self.ledger.run(record.trial)
        try:
            _write_config(run, self.plan.trial_config(run, record.parameters))
        except UsageError as error:  # options that each are right need not go together
            self.ledger.end(record.trial, "failed", str(error))
            self.ended(record.trial)
            return False
        return True

    def _learn(self, record: Record) -> None:
        self._searcher.learn(record.number, self.ledger.values(record.trial), record.status)


class FinalJobs:
    """A trial's parameters with new seeds, each tested at its end."""

    what = "final run"

    def __init__(self, plan: SearchPlan, ledger: Ledger, chosen: Record):
        self.plan, self.ledger = plan, ledger
        self.names: list[str] = []
        for seed in plan.final_seeds(chosen.parameters):
            run = plan.search.final(chosen.trial, seed)
            self.names.append(run.name)
            if run.name not in ledger:
                ledger.add(run, replace(plan.record(run, chosen.trial, chosen.number, chosen.parameters), seed=seed))
        self._left = deque(name for name in self.names if not ledger.record(name).has_ended)
        self.total = self.begun = len(self._left)

    def next(self) -> list[RunDir]:
        """The run directory of the next one; none where all have been trained."""
        if not self._left:
            return []
        name = self._left.popleft()
        run, record = self.ledger.run(name), self.ledger.record(name)
        _write_config(run, self.plan.final_config(run, record.parameters, record.seed))
        return [run]

    def ended(self, name: str) -> None:
        """Nothing follows from it."""


def _write_config(run: RunDir, config: Config) -> None:
    write_atomic(run.config_file, dump(config).encode())
