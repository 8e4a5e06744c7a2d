"""Trials on a cluster, as many at once as fit: one experiment of Ray Tune's.

Tune's own state is disposable, as Ray Train's is. Each start is a new experiment, which goes on with what the run
directories know: trials that have not ended from their checkpoints, a scheduler's decisions from past epochs.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from trainer.board import with_board
from trainer.concurrency import Concurrency
from trainer.errors import RunError
from trainer.group import ray_state, umask
from trainer.jobs import Jobs
from trainer.rundir import Json
from trainer.search_plan import SearchPlan
from trainer.trial import Trial

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run directories have it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that diverged at once has no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Known:
    """A trial by its id alone: stands for one that an earlier start began."""

    trial_id: str


def run_trials(
    jobs: Jobs,
    place: Concurrency,
    scheduler: Any,
    plan: SearchPlan,
    show: Callable[[Json], object],
    asked: Callable[[], bool],
) -> None:
    """Trains all jobs, or until a stop is asked for. Then every running trial ends with a checkpoint.

    Args:
        jobs: what to train.
        place: how many at once, and on what.
        scheduler: Ray Tune's, which stops trials early.
        plan: the search.
        show: is given every message of the trials, which say which `trials` they are of.
        asked: whether to stop; is called again and again.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what happens to trials is said in our words
    proposals = Proposals(jobs, scheduler, plan.metric, plan.config.search.retries)

    def stopped() -> bool:
        proposals.stopped = proposals.stopped or asked()
        return proposals.stopped

    def take(message: Json) -> None:
        for name in message["trials"]:
            jobs.ledger.here(name, message["host"])
            if message["phase"] == "note":
                jobs.ledger.note(name, message["lines"])
        show(message)

    try:
        with ray_state(plan.search) as state:
            with_board(partial(_tune, plan, jobs, place, scheduler, proposals, state), take, stopped)
    except (ray.exceptions.RayError, tune.TuneError) as error:
        raise RunError(f"Ray ended in the middle of the search ({error}); the same command goes on") from None


def _tune(
    plan: SearchPlan,
    jobs: Jobs,
    place: Concurrency,
    scheduler: Any,
    proposals: Proposals,
    state: Path,
    board: Any,
) -> None:
    """One experiment of Tune's, which keeps its state there."""
    tune.run(  # its newer face, Tuner, would pickle everything first
        tune.with_parameters(Trial, machine=plan.machine, board=board, umask=umask()),
        name=state.name,
        storage_path=str(state.parent),
        resources_per_trial=_resources(place),
        search_alg=proposals,
        scheduler=scheduler,
        num_samples=jobs.total,
        max_concurrent_trials=place.trials,
        max_failures=-1,  # we count them, since a trial's last progress
        raise_on_failed_trial=False,
        reuse_actors=True,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
        callbacks=[Watch(jobs, place.scale.workers, plan.config.search.retries)],
        verbose=0,
    )


def _resources(place: Concurrency) -> Any:
    """What Tune reserves for a trial: its one worker; or nothing, where Ray Train reserves all workers together."""
    scale = place.scale
    if scale.workers > 1:
        return tune.PlacementGroupFactory([{"memory": 1.0}])  # 1 byte: Tune wants something
    return tune.PlacementGroupFactory(
        [{"CPU": float(scale.threads), **({"GPU": float(scale.gpus_per_worker)} if scale.gpu else {})}]
    )


def _name(trial: Any) -> str:
    return str(trial.trial_id)


class Proposals(Searcher):  # type: ignore[misc]  # Ray is not typed
    """What Tune asks for a next trial."""

    def __init__(self, jobs: Jobs, scheduler: Any, metric: str, retries: int):
        super().__init__()
        self._jobs, self._scheduler, self._metric, self._retries = jobs, scheduler, metric, retries
        self.stopped = False
        for record in jobs.ledger.records():
            if record.has_ended:
                self._replay(record.run, record.run)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or several that train together, which are one to Tune; or that there is none."""
        if self.stopped or not (runs := self._jobs.next()):
            return Searcher.FINISHED
        names = [run.name for run in runs]
        for name in names:
            self._replay(trial_id, name)
        return {"runs": [str(run.path) for run in runs], "trials": names, "metric": self._metric}

    def on_trial_complete(  # the result says which trial it is of
        self,
        trial_id: str,  # noqa: ARG002
        result: Json | None = None,
        error: bool = False,
    ) -> None:
        """A trial has ended, or been ended; of several, the last."""
        if error:
            return  # not even begun; what breaks later is started again
        assert result is not None, "a trial that trains has come to the end of an epoch, or has broken"
        stopped = {"status": "stopped", "message": f"by the scheduler, after epoch {result['epoch']}"}
        self._take({**stopped, **result})

    def on_trial_result(self, trial_id: str, result: Json) -> None:  # noqa: ARG002
        """An epoch has ended; or a trial that is not the last of those that train together."""
        self._take(result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a restart reads the run directories."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a restart reads the run directories."""

    def _take(self, result: Json) -> None:
        """Keeps what a trial has come to."""
        name, ledger = result["trial"], self._jobs.ledger
        ledger.here(name, result["hostname"])
        if ledger.record(name).has_ended:
            return  # it diverged beside others that then were started again
        if result["epoch"]:
            ledger.epoch(name, result)
        if "status" in result:
            if result["status"] == "broken":
                ledger.broke(name, result["message"], self._retries)
            else:
                ledger.end(name, result["status"], result["message"])
            self._jobs.ended(name)

    def _replay(self, trial_id: str, name: str) -> None:
        """Tells the scheduler the epochs that a trial has behind it."""
        known = Known(trial_id)
        self._scheduler.on_trial_add(None, known)
        for epoch, value in enumerate(self._jobs.ledger.values(name), 1):
            self._scheduler.on_trial_result(None, known, {"epoch": epoch, self._metric: value})


class Watch(tune.Callback):  # type: ignore[misc]  # Ray is not typed
    """Keeps the ledger of what only Tune knows."""

    def __init__(self, jobs: Jobs, workers: int, retries: int):
        self._jobs, self._workers, self._retries = jobs, workers, retries

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        """A trial's process has it now."""
        self._jobs.ledger.begin(self._left(trial), self._workers)

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        """What trained together broke, and is started again, without those that broke too often."""
        for name in self._left(trial):
            if self._jobs.ledger.record(name).status == "running":  # else it has said itself that it broke
                self._jobs.ledger.broke(name, _why(trial), self._retries)
                self._jobs.ended(name)

    def _left(self, trial: Any) -> list[str]:
        """Those of the trials that train together which have not ended."""
        return [name for name in trial.config["trials"] if not self._jobs.ledger.record(name).has_ended]


def _why(trial: Any) -> str:
    """What Tune has written down of a trial's last failure: the error at a traceback's end, or the first line."""
    try:
        text = Path(trial.error_file).read_text().split("Failure # ")[-1]
    except (OSError, TypeError):
        return "for an unknown reason"
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    raised = any(line.startswith('File "') for line in lines)
    return lines[-1 if raised else 0].removeprefix("trainer.errors.RunError: ") if lines else "for an unknown reason"


class FiniteOnly:
    """Keeps a trial that diverged before it had a value from a scheduler's statistics."""

    _metric: str

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Json) -> None:
        """A trial has ended."""
        if math.isfinite(result[self._metric]):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class Asha(FiniteOnly, AsyncHyperBandScheduler):  # type: ignore[misc]  # Ray is not typed
    """Asynchronous successive halving (Li et al. 2020), Tune's."""


class Median(FiniteOnly, MedianStoppingRule):  # type: ignore[misc]  # Ray is not typed
    """Median stopping (Golovin et al. 2017), Tune's, which knows trials by their ids here.

    So a trial that goes on is the one that an earlier start began. Epochs of that time are what others are judged by;
    they are not judged again, by medians that were not there then.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Json) -> Any:
        """An epoch has ended."""
        if isinstance(trial, Known):
            self._results[trial].append(result)
            return FIFOScheduler.CONTINUE
        return super().on_trial_result(tune_controller, Known(trial.trial_id), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Json) -> None:
        """A trial has ended, perhaps with an epoch that is known already."""
        known = Known(trial.trial_id)
        if result["epoch"] > len(self._results.get(known, ())):
            super().on_trial_complete(tune_controller, known, result)


def early_stopping(plan: SearchPlan) -> Any:
    """What stops trials early, after their schedule's warm-up and the epochs of grace; epochs count from 1."""
    asked = plan.config.search
    judged = {"time_attr": "epoch", "metric": plan.metric, "mode": plan.mode, "grace_period": plan.grace}
    if asked.scheduler == "asha":
        # A trial that comes to its last epoch has ended; Tune is not to end it before that.
        return Asha(max_t=plan.epochs + 1, reduction_factor=asked.reduction, **judged)
    if asked.scheduler == "median":
        return Median(min_time_slice=math.inf, **judged)  # never lets a trial wait for others
    return no_stopping()


def no_stopping() -> Any:
    """Every trial comes to its last epoch."""
    return FIFOScheduler()
