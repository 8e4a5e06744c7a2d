"""Many runs, from the command to its exit code: a search, its choice, and what that is worth on unseen data."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console

from cluster.ray_cluster import connect, join
from trainer.checkpoint import newest_step, store_base
from trainer.concurrency import Concurrency
from trainer.config import Config
from trainer.data import RunData
from trainer.errors import RunError
from trainer.fruitless import check_progress
from trainer.job import is_requeued_from, job_id
from trainer.jobs import FinalJobs, Jobs, TrialJobs
from trainer.launch import DONE, STOPPED, machine_of, near
from trainer.ledger import Ledger, Record
from trainer.lock import RunLock
from trainer.loop import scores
from trainer.predictions import Predicted, read_predictions
from trainer.progress import say
from trainer.rundir import RESTORE, SearchDir, now, write_json
from trainer.search_display import Draw, SearchDisplay, described_all
from trainer.search_plan import SearchPlan, make_search_plan
from trainer.search_preview import preview
from trainer.selection import choose, error_of
from trainer.stop import StopSignals
from trainer.tensorboard import write_hparams
from trainer.weights import Base
from trainer.wording import counted


def tune(config: Config, stop: StopSignals, draw: Draw, *, fresh: bool = False, retry_failed: bool = False) -> int:
    """Searches to the end, or on from where the search was; returns the exit code.

    0: done (also where it was done already). 75: stopped on request; the same command goes on.

    Raises:
        UsageError: where the configuration does not fit the data, the cluster, or the search of this name.
        RunError: where another process is at it, or takes it over, its files are damaged, or no trial came to its last
            epoch.
    """
    with join() as cluster:
        plan, data, base = make_search_plan(config, machine_of(cluster))
        console = Console()
        if fresh and plan.search.path.exists():
            _move_aside(plan, console)
        plan.search.trials_dir.mkdir(parents=True, exist_ok=True)
        with RunLock(plan.search, config.scale.timeout_s) as lock:
            search = Search(plan, data, base, console, draw, lock)
            if retry_failed:
                search.trials.retry_failed()
                search.finals.retry_failed()
            return search.run(stop)


def _move_aside(plan: SearchPlan, console: Console) -> None:
    """Keeps the old search of this name under another; a requeued batch job goes on with what it has begun."""
    search = plan.search
    with suppress(RunError):  # damaged: a reason to start over
        if search.exists() and is_requeued_from(search.read().get("job")):
            return
    aside = search.path.with_name(f"{search.name}.{time.strftime('%Y%m%dT%H%M%S')}")
    with RunLock(search, plan.config.scale.timeout_s):
        pass  # refuses where it is going on
    search.path.rename(aside)
    say(f"the old search {search.name} is now {aside}", console)


def _check_known(search: SearchDir) -> None:
    """Raises a RunError where nothing says any more what the search is, or one of its trials, that has begun there."""
    if search.trials() and not search.exists():
        raise RunError(f"{search.search_file}: is missing, and a search has begun there; {RESTORE}")
    for run in search.unknown():
        raise RunError(f"{run.trial_file}: is missing, and a trial has begun there; {RESTORE}")


class Search:
    """A search that this program holds: its plan, and what is known of its trials and final runs."""

    def __init__(self, plan: SearchPlan, data: RunData, base: Base, console: Console, draw: Draw, lock: RunLock):
        _check_known(plan.search)
        self._state = plan.search.read() if plan.search.exists() else plan.description(data)
        plan = plan.as_begun(self._state)
        self.plan, self.data, self.console, self._draw, self._lock = plan, data, console, draw, lock
        self._write(**plan.settings(), job=job_id())
        store_base(plan.search.trial(1), base.sha256, base.data)
        self.trials = Ledger(plan.metric, plan.mode, lock.check)
        self.trials.take_in(plan.search.trials())
        self.finals = Ledger(plan.metric, plan.mode, lock.check)
        self.finals.take_in(plan.search.finals())

    def run(self, stop: StopSignals) -> int:
        """Does what is left of the search; returns the exit code."""
        self._catch_up()
        trials = TrialJobs(self.plan, self.trials, self._ended)
        if not trials.total and not self._final_jobs().total:
            self._check_finals()
            say(f"search {self.plan.search.name} is finished: nothing to do\n{self._result()}", self.console)
            return DONE
        say(preview(self.plan, self.data), self.console)
        if ended := sum(record.has_ended for record in self.trials.records()):
            say(f"goes on: {ended} of {counted(self.plan.total, 'trial')} ended already", self.console)
        start = {"started": now(), "host": socket.gethostname(), "concurrent": self.plan.place.trials}
        self._write(state="running", starts=[*self._state["starts"], start])
        before = self._steps()
        if not self._train(trials, stop):
            self._write(state="stopped")
            check_progress(self.plan.search.fruitless_file, advanced=self._steps() != before)
            stopped = "stopped, every begun trial with a good checkpoint: the same command goes on from there"
            say(f"{stopped}\n{self._next()}", self.console)
            return STOPPED
        self._check_finals()
        self._write(state="done")
        say(self._result(), self.console)
        return DONE

    def _train(self, trials: TrialJobs, stop: StopSignals) -> bool:
        """Trains what is left to train; False where a stop was asked for before its end."""
        plan, places = self.plan, (self.plan.place, self.plan.final_place)
        with SearchDisplay(self.console, plan.search, plan.metric, plan.mode, self._draw) as display:
            display.waiting("starting Ray")
            with connect(cpus=max(place.cpus for place in places), gpus=max(place.gpus for place in places)) as head:
                # Ray reads its environment when it is imported, so not before.
                from trainer.experiment import early_stopping, no_stopping

                self._run_jobs(trials, plan.place, early_stopping(plan), display, stop, head.check)
                if not trials.all_ended:
                    return False
                finals = self._final_jobs()
                self._write(state="final")
                if finals.total:
                    chosen = self._state["choice"]["cheapest"]
                    new = counted(finals.total, "new seed")
                    say(f"the choice, trial {chosen}, is trained again with {new}", self.console)
                self._run_jobs(finals, plan.final_place, no_stopping(), display, stop, head.check)
        return all(self.finals.record(name).has_ended for name in finals.names)

    def _run_jobs(
        self,
        jobs: Jobs,
        place: Concurrency,
        scheduler: Any,
        display: SearchDisplay,
        stop: StopSignals,
        check_ray: Callable[[], None],
    ) -> None:
        from trainer.experiment import run_trials

        if not jobs.total or stop.asked():
            return
        total = len(jobs.ledger.records()) + jobs.total - jobs.begun

        def asked() -> bool:
            check_ray()
            self._lock.check_heartbeat()
            display.update(jobs.ledger.records(), total)
            if stop.asked():
                display.stopping()
            return stop.asked()

        display.waiting(f"starting {place}")
        display.begin(jobs.what, jobs.ledger.records(), total)
        run_trials(jobs, place, scheduler, self.plan, display.show, asked)
        display.update(jobs.ledger.records(), total, force=True)

    def _final_jobs(self) -> FinalJobs:
        """The choice's final runs.

        Raises:
            RunError: where no trial came to its last epoch, so that there is no choice.
        """
        choice = self._state["choice"]
        if choice is None:
            records = self.trials.records()
            why = "\n".join(f"  trial {record.run} {record.status}: {record.message}" for record in records)
            raise RunError(f"no trial came to its last epoch, so there is nothing to choose from:\n{why}")
        jobs = FinalJobs(self.plan, self.finals, self.trials.record(choice["cheapest"]))
        if choice["finals"] != jobs.names:
            self._write(choice={**choice, "finals": jobs.names})
        return jobs

    def _catch_up(self) -> None:
        """Does what follows from the ends of trials: an earlier start may have been killed before it could."""
        for record in self.trials.records():
            self._describe(record)
        self._choose()

    def _ended(self, record: Record) -> None:
        """Does what follows from the end of a trial."""
        self._describe(record)
        self._choose()

    def _describe(self, record: Record) -> None:
        if record.has_ended and record.value is not None:
            write_hparams(self.trials.run(record.run).tensorboard_dir, record.parameters, self.plan.metric)

    def _choose(self) -> None:
        """Chooses anew, as far as the trials have come."""
        choice = choose(
            self.trials.records(), self.plan.mode, lambda record: self.plan.depth(record.parameters), self._error_of
        )
        self._write(choice=choice and {**choice.json(), "finals": []})

    def _error_of(self, record: Record) -> float:
        predicted = self._predicted(record, "val")
        by_group = self.plan.config.data.split == "group"
        return error_of(self.plan.metric, predicted.logits, predicted.labels, predicted.groups if by_group else None)

    def _predicted(self, record: Record, part: str) -> Predicted:
        ledger = self.finals if record.run in self.finals else self.trials
        return read_predictions(ledger.run(record.run).predictions_file(part))

    def _check_finals(self) -> None:
        """Raises a RunError where a final run did not come to its end."""
        finals = [self.finals.record(name) for name in self._state["choice"]["finals"]]
        if broken := [f"final run {one.run} {one.status}: {one.message}" for one in finals if one.status != "done"]:
            raise RunError("\n".join([*broken, "the same command with --retry-failed tries again"]))

    def _write(self, **changes: Any) -> None:
        self._lock.check()
        self._state = {**self._state, **changes}
        write_json(self.plan.search.search_file, self._state)

    def _steps(self) -> int:
        """Of all trials' newest checkpoints together: shows whether a start got anywhere."""
        runs = [*self.plan.search.trials(), *self.plan.search.finals()]
        return sum(newest_step(run) for run in runs)

    def _result(self) -> str:
        plan, choice = self.plan, self._state["choice"]
        chosen = self.trials.record(choice["cheapest"])
        kind = " of a tile-level split" if plan.config.data.split == "random" else ""
        one_group = self._state["data"].get("val_groups") == 1
        over = " over tiles, since validation has one slide or patient" if one_group else ""
        lines = [
            f"best: trial {choice['best']}, {plan.metric} {choice['value']:.4f} (standard error "
            f"{choice['standard_error']:.4f}{over}) on validation tiles{kind}, chosen from {choice['of']} trials",
            f"within one standard error: {', '.join(choice['within'])}; the cheapest of those, of depth "
            f"{plan.depth(chosen.parameters)}, is the choice: trial {chosen.run} ({described_all(chosen.parameters)})",
            *self._tested(choice["finals"]),
            self._next(),
        ]
        return "\n".join(lines)

    def _next(self) -> str:
        return f"next: python -m analysis table {near(self.plan.search.path)}"

    def _tested(self, finals: list[str]) -> list[str]:
        """The final runs' results on each part, one line each."""
        records = [self.finals.record(name) for name in finals if self.finals.record(name).status == "done"]
        metric = self.plan.metric.removeprefix("val/")
        lines = []
        for part in self.data.evaluated() if records else []:
            found = [self._predicted(record, part) for record in records]
            values = [scores(one.logits, one.labels)[self.plan.metric] for one in found if len(one.labels)]
            if values:
                seeds = ", ".join(f"{value:.4f}" for value in values)
                lines.append(f"trained again with {counted(len(records), 'new seed')}: {metric} on {part}: {seeds}")
        return lines
