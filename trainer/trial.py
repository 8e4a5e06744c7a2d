"""One trial of a search, in a process of Ray Tune's."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

from ray import tune

from trainer.config import load_config
from trainer.errors import RunError, UsageError
from trainer.group import train_on_group
from trainer.plan import Plan, is_finished, make_plan, write_run
from trainer.remote import BoardReport
from trainer.rundir import Json, RunDir
from trainer.scale import Machine
from trainer.stepwise import Stepwise
from trainer.worker import Outcome, Report, work_alone


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray is not typed
    """Trains one trial after another; a step is an epoch.

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
        """Trains to the end of the next epoch but the last; with the last, writes the predictions."""
        if self._stepwise is None:
            try:
                self._stepwise = self._begin()
            except UsageError as error:  # it would be so again
                return self._result("failed", str(error))
        reached = self._stepwise.next()
        if not isinstance(reached, Outcome) and reached["epoch"] == self._epochs:
            reached = self._stepwise.next()
        if not isinstance(reached, Outcome):
            return reached
        if reached.status == "failed":
            raise RunError(reached.message)
        return self._result("waiting" if reached.status == "stopped" else reached.status, reached.message)

    def cleanup(self) -> None:
        """Ends what still trains, with a checkpoint."""
        if self._stepwise:
            self._stepwise.end()

    def _take(self, config: Json) -> None:
        # Nothing is read yet: what fails in a step is tried again by Tune, what fails here is not.
        self._run, self._metric = RunDir(Path(config["run"])), config["metric"]
        self._stepwise = None

    def _begin(self) -> Stepwise:
        config = load_config(self._run.config_file)
        self._epochs = config.loop.epochs
        plan, data, base = make_plan(config, self._machine, place=self._run)
        write_run(plan, data, base)
        return Stepwise(_done if is_finished(plan, data) else _training(plan), self._report())

    def _report(self) -> Report:
        report, name, host = BoardReport(self._board), self._run.name, socket.gethostname()
        return lambda message: report({**message, "trial": name, "host": host})

    def _result(self, status: str, message: str) -> Json:
        """How the trial ended, with its last epoch, as schedulers want it."""
        history = self._run.read_metrics()
        last = history[-1] if history else {"epoch": 0, self._metric: math.nan}
        return {**last, "status": status, "message": message, "done": True}


def _training(plan: Plan) -> Any:
    """Trains in this process, or, with several workers, on a group of Ray Train's."""
    if plan.scale.workers > 1:
        return lambda report, asked: train_on_group(plan, report, asked)
    return lambda report, _: work_alone(plan, report)


def _done(*_: Any) -> Outcome:
    return Outcome("done")
