"""What the page says of a search, and the figure and table files that lie beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import search_figures as figures
from analysis.fields import Field
from analysis.importance import MANY, Importance, importance
from analysis.report.writer import Folder, Picture, Room
from analysis.search import Search
from analysis.table import exports
from analysis.table.columns import TrialTable, trial_table
from trainer.wording import counted

FOLDER = "search"
CAPTION = (
    "Filled: trials that are done, with the 95 % interval of their balanced accuracy; hollow: trials that have seen "
    "fewer epochs; crosses: no score; a ring or a thick line: the choice."
)


@dataclass(frozen=True)
class SearchSection:
    """What the page says of one search."""

    search: Search
    table: dict[str, Any]
    """For the template of the table."""
    facts: list[tuple[str, str]]
    pictures: list[Picture]
    notes: list[str]
    """What one must know to read the pictures."""


def search_section(search: Search, out: Path, room: Room) -> SearchSection:
    """Draws and writes everything of a search into a folder of its own in `out`."""
    writer = Folder(out / FOLDER, room)
    writer.folder.mkdir(exist_ok=True)
    table = trial_table(search)
    (writer.folder / "trials.csv").write_bytes(
        b"\xef\xbb\xbf" + exports.as_csv(table)
    )  # with the mark that Excel needs
    found = importance(search, table.fields)
    return SearchSection(
        search=search,
        table=exports.page(table),
        facts=list(_facts(table)),
        pictures=list(_pictures(table, found, writer)) if search.trials else [],
        notes=[CAPTION, _said(found)] if search.trials else [],
    )


def _facts(table: TrialTable) -> Iterator[tuple[str, str]]:
    search = table.search
    yield "Search directory", str(search.directory.path)
    yield "Started", str(search.facts.get("created", "-"))
    yield "Space", "; ".join(f"{field.name}: {_written(field, search.space[field.key])}" for field in table.fields)
    yield "Searcher, scheduler", f"{search.facts.get('searcher', '-')}, {search.facts.get('scheduler', '-')}"
    yield (
        "Chosen by",
        f"{search.metric}, {'largest' if search.larger_is_better else 'smallest'}, of each trial's best epoch",
    )
    yield "Validation", search.kind
    yield "Cost", ", ".join(_costs(search))


def _costs(search: Search) -> Iterator[str]:
    """What the trials, and then the final runs, have cost."""
    for runs, what in ((search.trials, "trial"), (search.finals, "final run")):
        if runs:
            spent = sum(run.worker_seconds for run in runs)
            yield f"{spent:,.0f} worker-seconds ({spent / 3600:.2f} worker-hours) in {counted(len(runs), what)}"


def _written(field: Field, values: dict[str, Any]) -> str:
    [(form, content)] = values.items()
    return f"{form} {', '.join(str(value) if isinstance(value, float) else field.text(value) for value in content)}"


def _pictures(table: TrialTable, found: Importance | str, writer: Folder) -> Iterator[Picture]:
    search = table.search
    axis, by = figures.main_fields(table.fields)
    coloured = f" by {by.label}" if by else ""

    def title(what: str) -> str:
        return f"{what}\n{search.name} · val · {search.kind}"

    def picture(figure: Any, name: str, alt: str, *, wide: bool = False) -> Picture:
        return writer.picture(figure, name, alt, wide)

    against = f"Score against {axis.label}{coloured}"
    yield picture(figures.score_by_field(search, axis, by, title(against)), "score-by-field", against)
    other = by or next((field for field in table.fields if field is not axis), None)
    if other is not None:  # of a single field the first figure has said all
        what = f"Best score by {axis.label} and {other.label} (in brackets: of how many trials)"
        yield picture(figures.score_map(search, axis, other, title(what)), "score-map", what)
        what = "Every trial from its fields to its score"
        yield picture(figures.parallel_coordinates(search, table.fields, title(what)), "parallel", what, wide=True)
    what = f"Learning curves of all trials{coloured}"
    yield picture(figures.all_curves(search, by, title(what)), "curves", what)
    what = f"Score against cost{coloured}; dashed: the best for its cost"
    yield picture(figures.cost(search, by, title(what)), "cost", what)
    if isinstance(found, Importance):
        guess = ": a guess" if found.is_guess else ""
        what = f"Importance of each field (fANOVA, {found.trials} trials{guess})"
        yield picture(figures.importance_bars(found.shares, title(what)), "importance", what)


def _said(found: Importance | str) -> str:
    """How importance was computed, and what it is worth; or why there is none."""
    if isinstance(found, str):
        return f"No importance of the fields. {found}"
    early = f", {found.stopped} of them stopped early and taken with the score that they had" if found.stopped else ""
    guess = (
        f" With fewer than {MANY} trials it is a guess: at most the order tells something." if found.is_guess else ""
    )
    return (
        "Importance is the share of the score's variance over the space that a field explains alone, by functional "
        f"analysis of variance over a random forest (Hutter, Hoos and Leyton-Brown 2014; Optuna) of {found.trials} "
        f"trials{early}. It tells nothing of values outside of the space, and less where there were few trials.{guess}"
    )
