"""What a start makes of what an earlier one has left, written by hand: no Ray here."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis.search import read_search
from trainer.__main__ import main
from trainer.config import load_config
from trainer.data import RunData
from trainer.errors import RunError
from trainer.experiment import Proposals, Watch, early_stopping, no_stopping
from trainer.jobs import TrialJobs
from trainer.ledger import Ledger
from trainer.lock import RunLock
from trainer.loop import scores
from trainer.predictions import write_predictions
from trainer.rundir import RunDir, read_json, write_json, write_json_lines
from trainer.scale import this_machine
from trainer.search import _move_aside
from trainer.search_plan import SearchPlan, make_search_plan

Make = Callable[..., Path]


class Left:
    """A search as an earlier start left it."""

    def __init__(self, config: Path):
        self.config = config
        self.plan: SearchPlan
        self.data: RunData
        self.plan, self.data, _ = make_search_plan(load_config(config), this_machine())
        self.search = self.plan.search
        self.search.trials_dir.mkdir(parents=True)
        write_json(self.search.search_file, self.plan.description(self.data))
        self.ledger = Ledger(self.plan.metric, self.plan.mode, check=lambda: None)
        self._searcher = self.plan.make_searcher(0)

    def trial(self, number: int, status: str, *right: float, **known: Any) -> RunDir:
        """A trial with some epochs behind it, of whose answers such shares are right; with predictions, if done."""
        run, parameters = self.search.trial(number), self._searcher.propose(number)
        record = self.plan.record(run, run.name, number, parameters)
        run.path.mkdir()
        history = [
            {"epoch": epoch, **scores(self._logits(share), self.data.tiles("val").labels)}
            for epoch, share in enumerate(right, 1)
        ]
        write_json_lines(run.metrics_file, history)
        if status == "done":
            index, logits = self.data.index("val"), self._logits(max(right))
            write_predictions(run.predictions_file("val"), index, logits, self.data.classes, "step-00000001-a0001")
        value = max((line[self.plan.metric] for line in history), default=None)
        found = {"status": status, "epoch": len(right), "value": value}
        self.ledger.add(run, replace(record, **{**found, **known}))
        return run

    def jobs(self) -> TrialJobs:
        """What the next start trains."""
        ledger = Ledger(self.plan.metric, self.plan.mode, check=lambda: None)
        ledger.take_in(self.search.trials())
        return TrialJobs(self.plan, ledger, lambda _: None)

    def proposals(self) -> Proposals:
        """What the next start gives Tune."""
        return Proposals(self.jobs(), early_stopping(self.plan), self.plan.metric, retries=1)

    def tune(self, *flags: str) -> int:
        """The same command again."""
        return main(["tune", str(self.config), *flags])

    def _logits(self, right: float) -> Any:
        labels = self.data.tiles("val").labels
        called = np.where(np.arange(len(labels)) < right * len(labels), labels, (labels + 1) % 9)
        return np.eye(9, dtype=np.float32)[called]


@pytest.fixture
def leave(make: Make) -> Callable[..., Left]:
    return lambda **options: Left(make(**options))


@dataclass(eq=False)
class OfTune:
    """What schedulers ask of Tune's own trials."""

    trial_id: str
    config: Any = None
    error_file: str | None = None


def hparams(run: RunDir) -> list[Path]:
    return list(run.tensorboard_dir.glob("*.hparams"))


@pytest.mark.parametrize("known", [1, 2], ids=["first", "last"])
def test_a_kill_between_a_trials_end_and_the_choice_leaves_no_old_choice(
    leave: Callable[..., Left], known: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed when trial 2 had ended, and the choice, if there was one, was of trial 1 alone."""
    left = leave(**{"search.trials": 2})
    left.trial(1, "done", 0.2)
    if known == 2:
        assert left.tune("--search.trials", "1") == 0
        assert left.search.read()["choice"]["of"] == 1
    better = left.trial(2, "done", 0.9)
    assert left.tune() == 0
    choice = left.search.read()["choice"]
    assert (choice["of"], choice["best"]) == (2, "0002")
    assert len(hparams(better)) == 1
    assert "best: trial 0002" in capsys.readouterr().out
    assert left.tune() == 0
    assert len(hparams(better)) == 1, "once"


MEDIAN = {"search.scheduler": "median", "search.grace_epochs": 1, "search.trials": 6, "loop.epochs": 4}


def test_medians_are_rebuilt_and_what_was_stopped_is_not_judged_again(leave: Callable[..., Left]) -> None:
    left = leave(**MEDIAN)
    for number in (1, 2, 3):
        left.trial(number, "done", 0.5, 0.6, 0.7, 0.8)
    left.trial(4, "stopped", 0.2, 0.2, 0.2)
    left.trial(5, "running", 0.9, 0.1)
    proposals = left.proposals()
    median, metric = proposals._scheduler, left.plan.metric

    def judged(trial: str, epoch: int, value: float) -> str:
        return str(median.on_trial_result(None, OfTune(trial), {"epoch": epoch, metric: value}))

    assert proposals.suggest("resumed")["trials"] == ["0005"]
    assert judged("resumed", 3, 0.1) == "CONTINUE", "its best is of the earlier start: 0.9, above the median of 0.6"
    assert proposals.suggest("new")["trials"] == ["0006"]
    assert judged("new", 1, 0.6) == "CONTINUE"
    assert judged("other", 1, 0.1) == "STOP"


@pytest.mark.parametrize(
    ("right", "expected"), [((0.6, 0.4), {"STOP", "CONTINUE"}), ((0.95, 0.4), {"CONTINUE"})], ids=["poor", "good once"]
)
def test_a_resumed_trial_is_judged_as_if_nothing_had_happened(
    leave: Callable[..., Left], right: tuple[float, ...], expected: set[str]
) -> None:
    """Against a rule that has seen it all in one go."""
    left = leave(**MEDIAN)
    told = {1: (0.5, 0.6, 0.9, 0.9), 2: (0.4, 0.6, 0.9, 0.9), 3: (0.7, 0.9, 0.9, 0.9), 4: right}
    for number, shares in told.items():
        left.trial(number, "running" if number == 4 else "done", *shares)
    proposals = left.proposals()
    proposals.suggest("resumed")
    undisturbed, metric = early_stopping(left.plan), left.plan.metric
    trials = {number: OfTune(f"{number}") for number in told}
    for number, trial in trials.items():
        for epoch, value in enumerate(left.ledger.values(f"{number:04d}"), 1):
            undisturbed.on_trial_result(None, trial, {"epoch": epoch, metric: value})
    decisions = []
    for value in (0.1, 0.2, 0.9):
        result = {"epoch": 3, metric: value}
        pair = [(proposals._scheduler, OfTune("resumed")), (undisturbed, trials[4])]
        decisions.append([deepcopy(rule).on_trial_result(None, trial, result) for rule, trial in pair])
    assert [one for one, _ in decisions] == [other for _, other in decisions]
    assert expected == {one for one, _ in decisions}


def test_a_restarted_optuna_search_proposes_other_trials_than_those_that_have_begun(leave: Callable[..., Left]) -> None:
    left = leave(**{"search.searcher": "optuna", "search.trials": 5})
    left.trial(1, "failed")
    for number in (2, 3):
        left.trial(number, "running", 0.5)
    jobs = left.jobs()
    assert [run.name for _ in range(5) for run in jobs.next()] == ["0002", "0003", "0004", "0005"]
    rates = [record.parameters["optim.lr"] for record in jobs.ledger.records()]
    assert len(set(rates)) == 5
    states = [trial.state.name for trial in jobs._searcher._study.trials]
    assert states == ["FAIL", "RUNNING", "RUNNING", "RUNNING", "RUNNING"]


def test_a_driver_that_lost_its_search_writes_nothing_and_retries_no_trial(leave: Callable[..., Left]) -> None:
    """As where its node was cut off and another start has taken over: what its trials then tell is not kept."""
    left = leave(**{"search.trials": 2, "search.scheduler": "none"})
    run = left.trial(1, "running", 0.5)
    with RunLock(left.search) as lock:
        ledger = Ledger(left.plan.metric, left.plan.mode, lock.check)
        ledger.take_in(left.search.trials())
        jobs = TrialJobs(left.plan, ledger, lambda _: None)
        proposals, watch = Proposals(jobs, no_stopping(), left.plan.metric, 1), Watch(jobs, 1, 1)
        trial = OfTune("one", proposals.suggest("one"))
        watch.on_trial_start(trial=trial)
        write_json(left.search.lock_file, {**read_json(left.search.lock_file), "host": "elsewhere", "pid": 17})
        before = run.trial_file.read_bytes()
        result = {"trial": "0001", "epoch": 2, left.plan.metric: 0.9, "hostname": "here"}
        for told in (
            partial(proposals.on_trial_result, "one", result),
            partial(proposals.on_trial_complete, "one", {**result, "status": "done", "message": ""}),
            partial(proposals.suggest, "two"),
            partial(watch.on_trial_recover, trial=trial),
            partial(watch.on_trial_start, trial=trial),
        ):
            with pytest.raises(RunError, match="taken over by process 17 on elsewhere"):
                told()
        assert run.trial_file.read_bytes() == before
        assert not left.search.trial(2).trial_file.exists()
    assert left.search.lock_file.exists(), "it is the other's"


def test_epochs_that_were_saved_and_not_told_count(leave: Callable[..., Left]) -> None:
    """Of trials that go on, that end without another epoch, and that are stopped early for one of them."""
    left = leave(**{"search.trials": 3, "loop.epochs": 4})
    known = {"epoch": 1, "value": 0.1}
    left.trial(1, "running", 0.2, 0.9, 0.5, **known)
    left.trial(2, "running", 0.2, 0.9, 0.5, **known)
    left.trial(3, "running", 0.2, 0.9, 0.5, **{**known, "epoch": 2})
    best = max(left.ledger.values("0001"))
    left.ledger.end("0002", "done")
    left.ledger.end("0003", "stopped")
    left.ledger.take_in(left.search.trials())
    reached = [(record.epoch, record.value) for record in left.ledger.records()]
    assert reached == [(3, best), (3, best), (2, best)]
    assert [len(left.ledger.values(f"{number:04d}")) for number in (1, 2, 3)] == [3, 3, 2]
    table = read_search(left.search.path).trials
    assert [(trial.epoch, len(trial.history)) for trial in table] == [(3, 3), (3, 3), (2, 2)]


def test_what_ran_at_a_kill_waits_at_the_next_start_and_says_so(leave: Callable[..., Left]) -> None:
    left = leave(**{"search.trials": 2})
    runs = [left.trial(1, "running", 0.5), left.trial(2, "done", 0.5)]
    left.jobs()
    assert [read_json(run.trial_file)["status"] for run in runs] == ["waiting", "done"]


def test_failures_count_since_the_last_epoch(leave: Callable[..., Left]) -> None:
    """One retry: a trial may break once after each epoch, and twice in the same one ends it."""
    left = leave(**{"search.trials": 2, "search.share_trunk": "auto", "loop.epochs": 9})
    jobs = left.jobs()
    proposals = Proposals(jobs, no_stopping(), left.plan.metric, retries=1)
    watch, trial = Watch(jobs, workers=1, retries=1), OfTune("one", proposals.suggest("one"))
    one, two = (jobs.ledger.record(name) for name in trial.config["trials"])
    here = {"trial": "0001", "hostname": "here", left.plan.metric: 0.5}
    for epoch in (1, 2, 3):
        watch.on_trial_start(trial=trial)
        proposals.on_trial_result("one", {**here, "epoch": epoch})
        proposals.on_trial_result("one", {**here, "trial": "0002", "epoch": min(epoch, 2)})
        watch.on_trial_recover(trial=trial)
        assert one.status == "waiting"
        assert two.status == ("waiting" if epoch < 3 else "failed")
    assert (one.failures, two.failures) == (3, 2)
    broken = {**here, "epoch": 0, "status": "broken", "message": "of its own"}
    watch.on_trial_start(trial=trial)
    assert two.status == "failed", "what has failed is not begun again"
    proposals.on_trial_result("one", broken)
    watch.on_trial_recover(trial=trial)
    assert (one.status, one.message, one.failures) == ("failed", "of its own", 3)


def test_fresh_starts_over_where_the_search_is_damaged(
    leave: Callable[..., Left], capsys: pytest.CaptureFixture[str]
) -> None:
    left = leave(**{"search.trials": 1})
    left.search.search_file.write_text("{")
    assert left.tune() == 1
    assert "start over with --fresh" in capsys.readouterr().err
    plan, _, _ = make_search_plan(load_config(left.config), this_machine())
    _move_aside(plan, Console())
    assert not left.search.path.exists()
    (aside,) = left.search.path.parent.glob("search.*")
    assert (aside / "search.json").read_text() == "{"
