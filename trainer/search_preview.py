"""What a search is about to do, in words: the lines that it begins with, and its dry run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from cluster.ray_cluster import join
from trainer.config import Config, dump
from trainer.data import RunData
from trainer.launch import machine_of, tiles_by_class
from trainer.search_display import described_all
from trainer.search_plan import DEPTH, SearchPlan, make_search_plan
from trainer.wording import counted

MOST_LISTED = 50


def describe(config: Config, *, fresh: bool) -> str:
    """What `tune` would do: the resolved configuration, the split by class, the trials that are known beforehand."""
    with join() as cluster:
        plan, data, _ = make_search_plan(config, machine_of(cluster))
    if plan.search.exists() and not fresh:
        plan = plan.as_begun(plan.search.read())
    return "\n".join([dump(plan.config), tiles_by_class(data), "", preview(plan, data), *_trials(plan)])


def preview(plan: SearchPlan, data: RunData) -> str:
    """How many trials of what, on what, judged by what; what their checkpoints take; what to know beforehand."""
    asked = plan.config.search
    stopping = "no early stopping" if asked.scheduler == "none" else asked.scheduler
    what = (
        f"{plan.search}: {counted(plan.total, 'trial')} ({asked.searcher}, {stopping}) of {plan.space}; judged by "
        f"{plan.metric} on {len(data.index('val')):,} validation tiles; {plan.place}"
    )
    tiles = int(data.counts()["train"].sum())
    return "\n".join(
        [what, *_space_taken(plan), *_sharing(plan), *_warnings(plan), *data.warnings(), *plan.ema_warnings(tiles)]
    )


def _space_taken(plan: SearchPlan) -> Iterator[str]:
    seeds = plan.config.search.final_seeds
    finals = f" and {counted(seeds, 'final run')}" if seeds else ""
    place = next(folder for folder in (plan.search.path, *plan.search.path.parents) if folder.exists())
    needed, free = plan.checkpoints_bytes(), shutil.disk_usage(place).free
    yield f"checkpoints may take {_size(needed)} ({counted(plan.total, 'trial')}{finals}), and {_size(free)} are free"
    if needed > free:
        yield "warning: that is more than there is; lower loop.keep, or name another run.storage"


def _sharing(plan: SearchPlan) -> Iterator[str]:
    if shared := [group for group in plan.groups() if len(group) > 1]:
        yield (
            f"{sum(map(len, shared))} trials train heads alone: together on {counted(len(shared), 'trunk')}, "
            "each in one trial's place"
        )


def _warnings(plan: SearchPlan) -> Iterator[str]:
    if plan.config.run.mirror:
        yield "warning: run.mirror: a search is not copied; it is kept in run.storage alone"
    if plan.config.data.split == "random":
        what = "a depth" if DEPTH in plan.space.options else "what"
        yield (
            f"warning: tile-level split: tiles of one slide are on both sides, so {what} that is chosen here may "
            "not hold for new patients"
        )


def _trials(plan: SearchPlan) -> Iterator[str]:
    """The trials' parameters, where they do not depend on results."""
    known = plan.known_parameters()
    if not known:
        yield "trials are proposed one after another, from the scores of earlier ones"
    for number, parameters in enumerate(known[:MOST_LISTED], 1):
        yield f"trial {plan.search.trial(number).name}: {described_all(parameters)}"
    if len(known) > MOST_LISTED:
        yield f"... and {counted(len(known) - MOST_LISTED, 'more trial')}"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
