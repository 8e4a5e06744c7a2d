"""The columns of a table of trials, and the order of its rows."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from analysis.fields import Field, fields
from analysis.scores import Interval
from analysis.search import BALANCED_ACCURACY, STATUSES, Search, Trial
from trainer.errors import UsageError

METRICS = {"val/accuracy": "accuracy", "val/macro_f1": "macro F1"}
"""What trials may be chosen by and has no column otherwise."""
ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    """As a file's column and as `--sort` call it."""
    heading: str
    """As people read it; a line break where a narrow table has one."""
    value: Callable[[Trial], Any]
    """In full precision; None where there is none."""
    text: Callable[[Trial], str] | None = None
    """As people read it; None: only files have this column."""
    right: bool = True
    """Aligned at the right, as numbers are."""
    order: Callable[[Trial], Any] | None = None
    """What rows are sorted by, if not the value; None where there is none."""
    also: str = ""
    """Another name of it."""

    @property
    def title(self) -> str:
        """The heading in one line."""
        return self.heading.replace("-\n", "-").replace("\n/", "/").replace("\n", " ")


@dataclass(frozen=True)
class TrialTable:
    """The trials of a search in rows."""

    search: Search
    fields: list[Field]
    columns: list[Column]
    rows: list[Trial]

    @property
    def shown(self) -> list[Column]:
        """The columns for people."""
        return [column for column in self.columns if column.text]


def trial_table(search: Search, sort: str | None = None, *, ascending: bool = False) -> TrialTable:
    """The trials, the best first; or the highest in a column first, or the lowest. Those without a value come last.

    Raises:
        UsageError: for a column that there is not.
    """
    own = [column.name for column in _columns(search, [])]
    searched = fields(search.space, own)
    columns = _columns(search, searched)
    column = _found(sort, columns) if sort is not None else columns[0]
    order = column.order or column.value
    rows = search.ranked()
    known = sorted(
        (trial for trial in rows if order(trial) is not None),
        key=lambda trial: _comparable(order(trial)),
        reverse=not ascending,
    )
    return TrialTable(search, searched, columns, known + [trial for trial in rows if order(trial) is None])


def _found(sort: str, columns: list[Column]) -> Column:
    for column in columns:
        if _plain(sort) in {_plain(name) for name in (column.name, column.also, column.title) if name}:
            return column
    names = [column.also or column.name for column in columns if column.text]
    near = difflib.get_close_matches(sort, names, n=1)
    nearest = f" (the nearest is {near[0]})" if near else ""
    raise UsageError(f"--sort {sort}: there is no such column{nearest}; there are {', '.join(names)}")


def _plain(name: str) -> str:
    """A name without the differences that nobody keeps in mind: tiles/s, tiles-s, Tiles_s."""
    return re.sub(r"[^\w.]+", "_", name.lower())


def _comparable(value: Any) -> tuple[bool, Any]:
    """Numbers before words, whatever a column mixes."""
    is_number = isinstance(value, (int, float))
    return (False, value) if is_number else (True, value if isinstance(value, str) else str(value))


def _columns(search: Search, searched: list[Field]) -> list[Column]:
    return [
        *_places(search),
        *(_searched(field) for field in searched),
        Column(
            "status",
            "status",
            value=lambda trial: trial.status,
            text=lambda trial: trial.status,
            right=False,
            order=lambda trial: -STATUSES.index(trial.status),
        ),
        Column(
            "epochs",
            "epochs",
            value=lambda trial: trial.epoch,
            text=lambda trial: f"{trial.epoch}/{trial.epochs}" if trial.epochs else ABSENT,
        ),
        Column("epochs_of", "of epochs", value=lambda trial: trial.epochs),
        *_scores(search),
        *_costs(),
        Column("said", "said", value=lambda trial: "; ".join(trial.said) or None, right=False),
    ]


def _places(search: Search) -> Iterator[Column]:
    """Where a trial stands among the others."""
    done = [trial.name for trial in search.ranked() if trial.status == "done" and trial.value is not None]
    ranks = {name: place for place, name in enumerate(done, start=1)}
    yield Column(
        "rank",
        "rank",
        value=lambda trial: ranks.get(trial.name),
        text=lambda trial: str(ranks.get(trial.name, ABSENT)),
        order=lambda trial: -ranks[trial.name] if trial.name in ranks else None,  # the highest rank is 1
    )
    yield Column("trial", "trial", value=lambda trial: trial.name, text=lambda trial: trial.name, right=False)
    yield Column(
        "selection",
        "selection",
        value=lambda trial: selection(search, trial),
        text=lambda trial: selection(search, trial) or "",
        right=False,
    )


def selection(search: Search, trial: Trial) -> str | None:
    """What the choice says of a trial, in words; None where it says nothing."""
    choice = search.choice
    if choice is None or trial.name not in choice.within:
        return None
    words = {"best": trial.name == choice.best, "choice": trial.name == choice.cheapest}
    return ", ".join(word for word, holds in words.items() if holds) or "within 1 SE"


def _searched(field: Field) -> Column:
    def value(trial: Trial) -> Any:
        return trial.parameters.get(field.key)

    def text(trial: Trial) -> str:
        return field.text(trial.parameters[field.key]) if field.key in trial.parameters else ABSENT

    heading = _in_two_lines(field.name)
    return Column(field.key, heading, value, text, right=field.scale != "categories", also=field.name)


def _in_two_lines(name: str) -> str:
    """A name, broken at the underscore that leaves the shortest lines."""
    words = name.split("_")
    broken = ["\n".join((" ".join(words[:place]), " ".join(words[place:]))) for place in range(1, len(words))]
    return min(broken, key=lambda lines: max(map(len, lines.split("\n"))), default=name)


def _scores(search: Search) -> Iterator[Column]:
    if search.metric in METRICS:
        name = METRICS[search.metric]
        yield Column(
            search.metric, name.replace(" ", "\n"), lambda trial: trial.value, lambda trial: _decimals(trial.value, 3)
        )
    yield Column(
        BALANCED_ACCURACY,
        "balanced accuracy\n(95 % interval)",
        value=lambda trial: trial.balanced_accuracy,
        text=lambda trial: _with_ends(trial.balanced_accuracy, trial.validation),
        right=False,  # of those without an interval too the scores stand under each other
        also="balanced_accuracy",
    )
    for end in ("low", "high", "standard_error"):
        yield Column(
            f"{BALANCED_ACCURACY}_{end}",
            end,
            value=lambda trial, end=end: getattr(trial.validation, end, None),  # type: ignore[misc]
        )
    yield Column(
        "val/loss",
        "loss",
        lambda trial: trial.best.get("val/loss"),
        lambda trial: _loss(trial.best.get("val/loss")),
        also="loss",
    )


def _costs() -> Iterator[Column]:
    def rate(trial: Trial) -> float | None:
        return trial.history[-1].get("tiles_per_s") if trial.history else None

    yield Column(
        "tiles_per_s", "tiles\n/s", rate, lambda trial: _decimals(rate(trial), 1 if (rate(trial) or 0) < 100 else 0)
    )
    yield Column("seconds", "seconds", lambda trial: trial.seconds)
    yield Column(
        "worker_seconds",
        "worker-\nseconds",
        lambda trial: trial.worker_seconds,
        lambda trial: f"{trial.worker_seconds:,.0f}" if trial.worker_seconds else ABSENT,
    )
    yield Column(
        "host",
        "host",
        lambda trial: trial.host,
        lambda trial: trial.host.partition(".")[0] if trial.host else ABSENT,
        right=False,
    )


def _decimals(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def _loss(value: float | None) -> str:
    """Of a trial that is about to diverge, the order of magnitude is enough."""
    return _decimals(value, 3) if value is None or abs(value) < 1e4 else f"{value:.1e}"


def _with_ends(value: float | None, interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return _decimals(value, 3)
    return f"{value:.3f} ({interval.low:.3f}-{interval.high:.3f})"
