"""What stands around a table of trials: how far the search is, where its numbers come from, what it chose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from analysis.kinds import TILE_LEVEL
from analysis.search import ENDED, STATUSES, Search
from analysis.table.columns import ABSENT, TrialTable
from trainer.wording import counted

DEPTH = "model.unfrozen_depth"
IN_WORDS = {"stopped": "stopped early"}


@dataclass(frozen=True)
class FinalRow:
    """Balanced accuracy of the final runs on one set."""

    split: str
    kind: str
    values: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds (n - 1); NaN of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """The row as people read it: set, split, mean, deviation, each seed."""
        deviation = ABSENT if math.isnan(self.deviation) else f"{self.deviation:.3f}"
        each = " ".join(f"{value:.3f}" for value in self.values)
        return self.split, self.kind, f"{self.mean:.3f}", deviation, each


FINAL_HEADINGS = ("set", "split", "mean balanced accuracy", "sd", "each seed")
FINAL_NOTE = "sd: over the seeds; it says nothing of other slides or patients"


def title(search: Search) -> str:
    """How far the search is, in one line."""
    counts = {status: sum(trial.status == status for trial in search.trials) for status in STATUSES}
    ended = sum(counts[status] for status in ENDED)
    how = [f"{counts[status]} {IN_WORDS.get(status, status)}" for status in ENDED if counts[status]]
    rest = [f", {counts[status]} {status}" for status in STATUSES if status not in ENDED and counts[status]]
    asked = max(len(search.trials), int(search.facts.get("trials", 0)))
    return f"{search.name}: {_state(search)}; {ended} of {asked} trials ended{_listed(how)}{''.join(rest)}"


def _listed(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _state(search: Search) -> str:
    state = str(search.facts["state"])
    if state == "done":
        return "done"
    if search.is_alive:
        return "training the choice again" if state == "final" else "running"
    if _is_without_choice(search):
        again = ", or --retry-failed" if any(trial.status == "failed" for trial in search.trials) else ""
        return f"no trial came to its last epoch, so none is chosen; ask for more trials{again}"
    failed = state == "final" and any(final.status == "failed" for final in search.finals)
    flag = " with --retry-failed, since a final run failed" if failed else ""
    return f"nobody is searching now, the same command goes on{flag}"


def _is_without_choice(search: Search) -> bool:
    """Whether all trials that were asked for have ended, and none of them can be chosen."""
    ended = sum(trial.status in ENDED for trial in search.trials)
    return search.choice is None and 0 < len(search.trials) == ended >= int(search.facts.get("trials", 0))


def legend(table: TrialTable, *, good: str = "*", chosen: str = "> ") -> Iterator[str]:
    """What the marks of good trials and of the chosen one mean; nothing where there are none."""
    search, choice = table.search, table.search.choice
    if choice is None:
        return
    given = search.trial(choice.cheapest).parameters
    written = [f"{field.label} {field.text(given[field.key])}" for field in table.fields if field.key in given]
    cheapest = " (smallest unfrozen depth)" if DEPTH in search.space else ""
    yield f"{good} no further than one standard error ({choice.standard_error:.3g}) from the best, {choice.best}"
    so_far = "" if search.facts["state"] in ("final", "done") else " so far"
    yield f"{chosen}choice{so_far}: the cheapest of these{cheapest}, {', '.join([choice.cheapest, *written])}"


def sources(search: Search) -> str:
    """On which split the numbers were obtained, and from how many trials the winner was selected."""
    metric = search.metric.removeprefix("val/").replace("_", " ")
    where = f"scores: validation ({search.kind}), each trial's best epoch by {metric}"
    choice = search.choice
    if choice is None:
        return f"{where}; nothing is chosen before a trial is done"
    trials = f"{counted(choice.of, 'trial')} ({choice.candidates} done)"
    return f"{where}; the choice was selected by them from {trials}, which flatters it"


def warnings(search: Search) -> list[str]:
    """What a reader must know before believing the table."""
    found = list(search.problems)
    if search.kind == TILE_LEVEL:
        what = "a depth" if DEPTH in search.space else "what is"
        found.append(
            f"{TILE_LEVEL}: tiles of one slide lie on both sides of it, so these scores are optimistic, and {what} "
            "chosen by them may not hold for new patients"
        )
    if search.facts["data"].get("val_groups") == 1:
        found.append(
            "validation has one slide or patient, so the standard error is over its tiles: it says nothing of others"
        )
    return found


def finals(search: Search) -> list[FinalRow]:
    """A row for each set that final runs were evaluated on; empty before."""
    splits = ["val", "test", *search.facts["data"]["external"]]
    rows = [
        FinalRow(
            split,
            search.kind_of(split),
            tuple(final.scores[split].value for final in search.finals if split in final.scores),
        )
        for split in splits
    ]
    return [row for row in rows if row.values]


def finals_title(search: Search) -> str:
    """What the second table shows."""
    if not search.finals:
        return ""
    seeds = ", ".join(str(final.seed) for final in search.finals)
    some = [final for final in search.finals if final.scores]
    asked = int(search.facts.get("final_seeds", len(search.finals)))
    so_far = f", {len(some)} of {asked} so far" if len(some) < asked else ""
    trial = search.finals[0].name.partition("-")[0]
    return f"{trial} trained again with other seeds ({seeds}{so_far}){_looked(search)}"


def _looked(search: Search) -> str:
    """How often each final run was evaluated on what no trial may see."""
    looks = {split: max(final.looks[split] for final in search.finals) for split in search.finals[0].looks}
    sets = {split: most for split, most in looks.items() if most}
    if not sets:
        return ""
    often = "once" if max(sets.values()) == 1 else f"up to {max(sets.values())} times"
    return f"; each evaluated {often} on {', '.join(sets)}"


def finals_notes(search: Search) -> list[str]:
    """What to know of the second table."""
    before = search.tested_before
    what = "1 final run of an earlier choice was" if before == 1 else f"{before} final runs of earlier choices were"
    return [FINAL_NOTE, *([f"{what} tested before, so this is not the first look"] if before else [])]
