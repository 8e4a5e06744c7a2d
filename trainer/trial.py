"""A trial of a search, or several that train together, in a process of Ray Tune's."""

from __future__ import annotations

import math
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainer.board import BoardReport
from trainer.checkpoint import stored_base
from trainer.config import load_config
from trainer.errors import RunError, UsageError
from trainer.group import train_on_group
from trainer.ledger import ENDED
from trainer.loop import Outcome
from trainer.plan import Plan, is_finished, make_plan, write_run
from trainer.rundir import Json, RunDir, SearchDir, read_json
from trainer.scale import Machine
from trainer.stepwise import Stepwise, Train
from trainer.weights import Base
from trainer.worker import Report, work_alone


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray is not typed
    """Trains one trial after another, or several at once on one trunk; a step is an epoch of one, or its end.

    What costs a second trial little: the process is there, with everything imported.
    """

    def setup(self, config: Json, machine: Machine, board: Any, umask: int) -> None:
        """Takes the first trial."""
        os.umask(umask)  # Ray's own is for its files, not for a run's
        self._machine, self._board = machine, board
        self._stepwise: Stepwise | None = None
        self._take(config)

    def reset_config(self, config: Json) -> bool:
        """Goes over to another trial."""
        self.cleanup()
        self._take(config)
        return True

    def step(self) -> Json:
        """Trains to the end of a trial's next epoch but the last; with the last, writes the predictions."""
        if self._stepwise is None:
            self._stepwise = self._begin()
        while not self._ready:
            self._ready += self._results(self._stepwise.next())
        result = self._ready.popleft()
        if isinstance(result, RunError):
            raise result
        return result

    def cleanup(self) -> None:
        """Ends what still trains, with a checkpoint."""
        if self._stepwise:
            self._stepwise.end()
        torch.cuda.empty_cache()  # where others share the GPU, they need it

    def _take(self, config: Json) -> None:
        # Nothing is read yet: what fails in a step is tried again by Tune, what fails here is not.
        self._runs, self._metric = [RunDir(Path(path)) for path in config["runs"]], config["metric"]
        self._stepwise = None
        self._ready: deque[Json | RunError] = deque()
        self._broken: list[Json] = []

    def _begin(self) -> Stepwise:
        """Begins with those that have not ended: an earlier start may have told of some."""
        runs = [run for run in self._runs if read_json(run.trial_file)["status"] not in ENDED]
        self._untold = {run.name for run in runs}
        plans: list[Plan] = []
        for run in runs:
            try:
                plan, finished = self._plan(run, plans)
            except (UsageError, RunError) as error:  # perhaps of this node alone, so that it is tried again
                self._broken.append(_broke(run, "; ".join(map(str, error.args))))
            else:
                if finished:
                    self._ready.append(self._end(run, Outcome("done")))
                else:
                    plans.append(plan)
        if not runs:
            self._ready.append(self._end(self._runs[0], Outcome("done")))
        self._training = [plan.run for plan in plans]
        return Stepwise(_training(plans), self._report())

    def _plan(self, run: RunDir, others: Sequence[Plan]) -> tuple[Plan, bool]:
        """The plan of a run, with its directory there, and whether nothing is left to do."""
        config = load_config(run.config_file)
        if not others:
            self._epochs = config.loop.epochs
            base = _base(run, config.model.weights)
            plan, self._data, self._base = make_plan(config, self._machine, place=run, base=base)
        else:  # of the same trunk: all that is opened and resolved is the same
            plan = replace(others[0], config=config, run=run)
        write_run(plan, self._data, self._base)
        return plan, is_finished(plan, self._data)

    def _report(self) -> Report:
        report, names, host = BoardReport(self._board), [run.name for run in self._training], socket.gethostname()
        return lambda message: report(
            {**message, "trials": [message["run"]] if "run" in message else names, "host": host}
        )

    def _results(self, reached: Json | list[Outcome]) -> list[Json | RunError]:
        """What to tell Tune, one by one; an error comes last, with which Tune starts again what broke."""
        if isinstance(reached, list):
            ends = [(run, one) for run, one in zip(self._training, reached, strict=True) if run.name in self._untold]
            told = [self._end(run, one) for run, one in ends if one.status != "failed"]
            broken = [*self._broken, *(_broke(run, one.message) for run, one in ends if one.status == "failed")]
            return [*told, *broken, *([RunError("broke")] if broken else [])]
        if reached["phase"] == "diverged":
            (run,) = [run for run in self._training if run.name == reached["run"]]
            return [self._end(run, Outcome("diverged", reached["message"]))]
        record = reached["record"]
        return [] if record["epoch"] == self._epochs else [{**record, "trial": reached["run"]}]

    def _end(self, run: RunDir, outcome: Outcome) -> Json:
        """How a trial ended, with its last epoch, as schedulers want it."""
        self._untold.discard(run.name)
        history = run.read_metrics()
        last = history[-1] if history else {"epoch": 0, self._metric: math.nan}
        status = "waiting" if outcome.status == "stopped" else outcome.status
        return {**last, "trial": run.name, "status": status, "message": outcome.message, "done": not self._untold}


def _broke(run: RunDir, why: str) -> Json:
    """That a trial is to be started again; without a score, so that no scheduler judges it."""
    return {"trial": run.name, "epoch": 0, "status": "broken", "message": why}


def _base(run: RunDir, weights: str) -> Base | None:
    """The starting weights of a trial as its search keeps them, so that no node needs torchvision's cache.

    None where they are drawn from the trial's own seed, or searched.
    """
    sha256 = SearchDir(run.path.parents[1]).read()["identity"].get("model.weights")
    return None if weights == "random" or sha256 is None else stored_base(run, sha256, weights)


def _training(plans: Sequence[Plan]) -> Train:
    """Trains in this process, or, with several workers, on a group of Ray Train's."""
    if not plans:
        return lambda *_: []
    if plans[0].scale.workers > 1:
        return lambda report, asked: train_on_group(plans, report, asked, waits=True)
    return lambda report, _: work_alone(plans, report)
