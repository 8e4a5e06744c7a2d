"""A search directory, read: also while the search runs, and without Ray, torch or pandas, for it is looked at often."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.kinds import KINDS, kind_of
from analysis.outcomes import read_outcomes
from analysis.scores import Interval, balanced_accuracy_interval
from trainer.errors import RunError, UsageError
from trainer.rundir import Json, RunDir, SearchDir, read_json, read_json_lines

ENDED = ("done", "stopped", "diverged", "failed")
STATUSES = (*ENDED, "running", "waiting")
"""In the order in which people want to see them."""
BEATS_S = 20.0
"""A lock file that has not been touched for so long belongs to nobody."""
BALANCED_ACCURACY = "val/balanced_accuracy"
KEYS = ("search", "state", "space", "metric", "mode", "data", "choice")


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it has got."""

    name: str
    directory: RunDir
    parameters: Mapping[str, Any]
    """By dotted key; only what is searched."""
    status: str
    """One of `STATUSES`."""
    epoch: int
    """Epochs that have ended."""
    epochs: int
    """Of how many."""
    value: float | None
    """The metric of the best epoch."""
    seconds: float
    worker_seconds: float
    host: str | None
    said: tuple[str, ...]
    """What happened to it, for people."""
    history: Sequence[Json]
    """One object an epoch, as in metrics.jsonl."""
    best: Json
    """The best epoch's; empty before the first has ended."""
    validation: Interval | None
    """Balanced accuracy of the best checkpoint; None before the predictions are there."""

    @property
    def balanced_accuracy(self) -> float | None:
        """On validation, in the best epoch."""
        return self.best.get(BALANCED_ACCURACY) if self.validation is None else self.validation.value


@dataclass(frozen=True)
class Final:
    """The choice, trained again."""

    name: str
    directory: RunDir
    seed: int
    status: str
    """One of `STATUSES`."""
    worker_seconds: float
    scores: Mapping[str, Interval]
    """Balanced accuracy on each set that it was evaluated on."""
    looks: Mapping[str, int]
    """How often test and external sets were looked at."""


@dataclass(frozen=True)
class Choice:
    """Which trials are good, and which of them was taken."""

    of: int
    """Trials that had ended."""
    candidates: int
    """Those that could be chosen."""
    best: str
    standard_error: float
    within: tuple[str, ...]
    """Trials within one standard error of the best, the best first."""
    cheapest: str
    """Of those the one that was taken."""


@dataclass(frozen=True)
class Search:
    """One search directory."""

    directory: SearchDir
    facts: Json
    """What search.json says."""
    is_alive: bool
    """Whether somebody is searching now."""
    trials: tuple[Trial, ...]
    """In order of their numbers."""
    choice: Choice | None
    finals: tuple[Final, ...]
    """Of the present choice."""
    tested_before: int
    """Final runs of earlier choices that test or external sets were looked at with."""
    problems: tuple[str, ...]
    """What could not be read."""

    @property
    def name(self) -> str:
        """The search's name."""
        return str(self.facts["search"])

    @property
    def space(self) -> dict[str, Json]:
        """What may vary, by dotted key."""
        return dict(self.facts["space"])

    @property
    def metric(self) -> str:
        """What trials are chosen by, as it is called in metrics.jsonl."""
        return str(self.facts["metric"])

    @property
    def larger_is_better(self) -> bool:
        """Whether the metric is a score, and no loss."""
        return bool(self.facts["mode"] == "max")

    @property
    def kind(self) -> str:
        """How validation and test tiles were parted from the training tiles."""
        return KINDS[self.facts["data"]["split"]]

    def kind_of(self, split: str) -> str:
        """The same of any set, an external one too."""
        return kind_of(split, self.facts["data"])

    def trial(self, name: str) -> Trial:
        """The trial of that name."""
        return next(trial for trial in self.trials if trial.name == name)

    def final_runs(self) -> list[Path]:
        """The directories of the final runs that have begun."""
        return [final.directory.path for final in self.finals if final.directory.identity_file.is_file()]

    def ranked(self) -> list[Trial]:
        """Done trials, the best first; then the others that have a score, likewise; then those without.

        Only trials that have seen all epochs can be compared, and chosen.
        """
        first = self.choice.best if self.choice else ""
        sign = -1 if self.larger_is_better else 1

        def place(trial: Trial) -> tuple[bool, float, bool]:
            value = float("inf") if trial.value is None else sign * trial.value
            return trial.status != "done", value, trial.name != first

        return sorted(self.trials, key=place)


def is_search(path: Path) -> bool:
    """Whether there is a search directory at `path`."""
    return SearchDir(path).exists()


def read_search(path: Path) -> Search:
    """Reads a search directory. What is wrong with a single trial is kept in `problems`, and does not hide the others.

    Raises:
        UsageError: if there is none at `path`, or search.json is not what it should be.
        RunError: if search.json is damaged.
    """
    _refuse_no_search(path)
    directory = SearchDir(path)
    facts = directory.read()
    _refuse_missing_keys(facts, directory.search_file)
    is_alive = _is_alive(directory.lock_file)
    problems: list[str] = []
    trials = [_trial(run, facts, is_alive, problems) for run in directory.trials()]
    choice = _choice(facts, {trial.name for trial in trials})
    names = (facts["choice"] or {}).get("finals", [])
    every = [final for run in directory.finals() for final in _final(run, facts, problems)]
    finals = tuple(final for final in every if final.name in names)
    before = sum(any(final.looks.values()) for final in every if final.name not in names)
    return Search(directory, facts, is_alive, tuple(trials), choice, finals, before, tuple(problems))


def _refuse_no_search(path: Path) -> None:
    if is_search(path):
        return
    if path.is_file():
        raise UsageError(f"{path}: is a file; name the directory of a search, e.g. {path.parent}")
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such directory; name the directory of a search, e.g. runs/NAME")
    file = SearchDir(path).search_file.name
    if RunDir(path).identity_file.is_file():
        raise UsageError(
            f"{path}: is the directory of a run, not of a search (it has no {file}); for a run: "
            f"python -m analysis report {path} --out DIR"
        )
    inside = sorted(str(child) for child in path.iterdir() if is_search(child))
    remedy = f"it holds searches: name one of {', '.join(inside)}" if inside else "name the directory of a search"
    raise UsageError(f"{path}: is not a search directory (it has no {file}); {remedy}")


def _refuse_missing_keys(facts: Json, file: Path) -> None:
    missing = [key for key in KEYS if key not in facts]
    missing += [f"data.{key}" for key in ("external", "split") if key not in facts.get("data", {})]
    if missing:
        raise UsageError(f"{file}: lacks {', '.join(missing)}; was it written by another program?")
    if facts["data"]["split"] not in KINDS:
        raise UsageError(f"{file}: data.split is {facts['data']['split']!r}, not one of {', '.join(KINDS)}")


def _is_alive(lock: Path) -> bool:
    """Whether its heartbeat is young."""
    try:
        beat = lock.stat().st_mtime
    except OSError:
        return False
    return _now(lock.parent) - beat < BEATS_S


def _now(folder: Path) -> float:
    """The time by the clock that files there are dated by, which may be a file server's; else by this host's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may be read, and not be written in
        return time.time()


def _choice(facts: Json, there: set[str]) -> Choice | None:
    """What was chosen, of the trials that are there: one of them may be written in this very moment."""
    made = facts["choice"]
    if not made or not {made["best"], made["cheapest"]} <= there:
        return None
    within = tuple(name for name in made["within"] if name in there)
    return Choice(made["of"], made["candidates"], made["best"], made["standard_error"], within, made["cheapest"])


def _trial(run: RunDir, facts: Json, is_alive: bool, problems: list[str]) -> Trial:
    state = _state(run, problems)
    status, history = state["status"], _history(run, problems)
    if status == "stopped":
        history = history[: state.get("epoch")]  # its workers may have gone on while that was decided
    best = _best(history, facts)
    value = best.get(facts["metric"], state.get("value"))  # the search may not have heard of the last epoch
    return Trial(
        name=run.name,
        directory=run,
        parameters=state.get("parameters", {}),
        status="waiting" if status == "running" and not is_alive else status,
        epoch=max(state.get("epoch", 0), len(history)),
        epochs=state.get("epochs", 0),
        value=value if value is not None and math.isfinite(value) else None,
        seconds=state.get("seconds", 0.0),
        worker_seconds=state.get("worker_seconds", 0.0),
        host=state.get("host"),
        said=tuple(filter(None, (state.get("message", ""), *state.get("notes", ())))),
        history=history,
        best=best,
        validation=_scored(run, "val", facts, problems) if status == "done" else None,
    )


def _state(run: RunDir, problems: list[str]) -> Json:
    """What trial.json says; a trial of which it says nothing has failed."""
    try:
        state = read_json(run.trial_file)
        if state.get("status") not in STATUSES:
            raise RunError(f"{run.trial_file}: status is {state.get('status')!r}, not one of {', '.join(STATUSES)}")
    except RunError as error:
        problems.append(str(error))
        return {"status": "failed", "message": str(error)}
    return state


def _history(run: RunDir, problems: list[str]) -> list[Json]:
    try:
        return read_json_lines(run.metrics_file) if run.metrics_file.exists() else []
    except RunError as error:
        problems.append(str(error))
        return []


def _best(history: Sequence[Json], facts: Json) -> Json:
    """The first of the epochs with the best metric."""
    metric, sign = facts["metric"], 1 if facts["mode"] == "max" else -1
    finite = [epoch for epoch in history if math.isfinite(epoch.get(metric, math.nan))]
    return max(finite, key=lambda epoch: sign * epoch[metric], default={})


def _final(run: RunDir, facts: Json, problems: list[str]) -> Iterator[Final]:
    """The final run, unless it cannot be read."""
    try:
        state = read_json(run.trial_file)
        looks = run.read_evaluations()
    except RunError as error:
        problems.append(str(error))
        return
    scores = {split: _scored(run, split, facts, problems) for split in ("val", "test", *facts["data"]["external"])}
    yield Final(
        name=run.name,
        directory=run,
        seed=state["seed"],
        status=state["status"],
        worker_seconds=state.get("worker_seconds", 0.0),
        scores={split: score for split, score in scores.items() if score is not None},
        looks={split: sum(look["split"] == split for look in looks) for split in scores if split != "val"},
    )


def _scored(run: RunDir, split: str, facts: Json, problems: list[str]) -> Interval | None:
    """Balanced accuracy on a set; None where there are no predictions, or of no tile whose class is known."""
    file = run.predictions_file(split)
    try:
        stamp = file.stat()
        by_group = facts["data"]["split"] == "group" or split in facts["data"]["external"]
        score = _score(file, by_group, (stamp.st_mtime_ns, stamp.st_size))
        return None if math.isnan(score.value) else score
    except FileNotFoundError:
        return None
    except UsageError as error:
        problems.append(str(error))
        return None


@lru_cache(maxsize=10_000)
def _score(file: Path, by_group: bool, _stamp: tuple[int, int]) -> Interval:
    """Kept, for a table that is drawn again every few seconds."""
    outcomes = read_outcomes(file)
    return balanced_accuracy_interval(outcomes.labels, outcomes.predicted, outcomes.groups if by_group else None)
