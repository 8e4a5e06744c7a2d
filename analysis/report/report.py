"""From run directories to one self-contained page, with its figures and tables as files beside it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.aggregate import ensemble, evaluate, of_other_tiles, seeds
from analysis.audit.findings import PROBLEM, WARNING, Audit
from analysis.collect import Model, Run
from analysis.evaluation import group_indices, interval_rule
from analysis.map_kinds import MapKind
from analysis.out import made, write_whole
from analysis.panels import ABSENT, TILES, has_tile, with_near
from analysis.report import cells
from analysis.report.asked import Asked
from analysis.report.audits import Audits, Elsewhere
from analysis.report.card import model_card
from analysis.report.maps import colour_bar_uri
from analysis.report.search_section import SearchSection, search_section
from analysis.report.sections import NOT_ASKED, ModelSection, model_section
from analysis.report.tables import headline, over_seeds
from analysis.report.writer import Room
from analysis.search import Search
from analysis.table import notes
from trainer.errors import UsageError
from trainer.wording import counted, joined

WARNED = (PROBLEM, WARNING)
"""Levels of findings that stand beside the headline."""
PICTURE_BYTES = 2_500_000
"""What all tiles and overlays of a page may take; more of them are drawn smaller."""
BYTES_PER_PIXEL = 0.67
EDGES = (64, 224)
OUTLINE_BYTES = 2_000_000
"""What all figures of a page may take as outlines, shared alike."""
FIGURES_OF_A_MODEL, FIGURES_OF_A_SET = 2, 7


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    page: Path
    headline: pd.DataFrame
    """The scores of each model on each set."""
    warnings: list[str]
    """What one must know before believing it; what it lacks, and how to get it."""


@dataclass(frozen=True)
class Summary:
    """What the page says of all models together."""

    headline: pd.DataFrame
    rule: str
    """How its intervals were found."""
    seeds: list[tuple[str, pd.DataFrame]]
    """The names of runs that differ in their seed alone, and their scores over the seeds."""
    looks: list[str]
    """Sets that were looked at more than once."""


def write_report(
    models: Sequence[Model],
    out: Path,
    search: Search | None = None,
    asked: Asked | None = None,
    *,
    card: bool = False,
) -> Report:
    """Writes `index.html` for these models (`collect`), and its figures and tables beside it; or a model card.

    With a `search`, it is the page of that search, and the models are its final runs.

    Args:
        models: what stands on the page.
        out: a folder; figures are written there as PNG and SVG, tables as CSV and Parquet.
        search: the search that the models are the final runs of.
        card: whether to write `model-card.md` in the place of the page.
        asked: what it is to have, beside what it always has.

    Raises:
        UsageError: for an `out` that is no folder, or lies in a run directory or a tile store; for tiles that are asked
            for and that no run has scored.
    """
    asked = asked or Asked()
    _refuse_unknown_tiles(models, asked.tiles)
    _refuse_impossible_patients(models, asked.patients)
    with made(out):
        return _write(models, out, search, asked, card=card)


def _write(models: Sequence[Model], out: Path, search: Search | None, asked: Asked, *, card: bool) -> Report:
    evaluated = [evaluate(model) for model in models]
    together = ensemble(models)
    all_models = [*evaluated, *([evaluate(together)] if together else [])]
    summary = Summary(
        headline=headline(all_models),
        rule=interval_rule([each for one in all_models for each in one.evaluations]),
        seeds=[(", ".join(each.model.name for each in group), over_seeds(group)) for group in seeds(evaluated)],
        looks=list(_looks(models)),
    )
    cells.write(summary.headline, out / "headline")
    for number, (_, table) in enumerate(summary.seeds, start=1):
        cells.write(table, out / f"seeds-{number}")
    audits, room = Audits(), _room(models)
    searched = search_section(search, out, room) if search else None
    sections = [model_section(each, number, out, room, asked, audits) for number, each in enumerate(evaluated, start=1)]
    warnings = [*(of_other_tiles(models) if len(models) > 1 else []), *_warnings(sections)]
    if card:
        page, text = out / "model-card.md", model_card(sections[0], summary.headline, summary.rule, warnings)
    else:
        page, text = out / "index.html", _render(summary, searched, sections, warnings)
    write_whole(page, text)
    return Report(page, summary.headline, [*(notes.warnings(search) if search else []), *warnings])


def _refuse_unknown_tiles(models: Sequence[Model], names: Sequence[str]) -> None:
    sets = [each for model in models if isinstance(model, Run) for each in model.predictions]
    unknown = [name for name in names if not any(has_tile(each, name) for each in sets)]
    if unknown:
        known = [str(path) for each in sets for path in each.table["path"]]
        raise UsageError(
            f"--tile {', '.join(with_near(unknown, known))}: no run has scored a tile of that path or id; "
            "RUN/predictions/*.parquet have both (tiles that were trained on are not scored)"
        )


def _refuse_impossible_patients(models: Sequence[Model], patients: Mapping[str, int]) -> None:
    sets = {each.split: each for model in models for each in model.predictions}
    for name, count in patients.items():
        if name not in sets:
            raise UsageError(f"--patients {name}={count}: there is no set {name}; there are {joined(sets)}")
        tiles = sets[name].table
        if group_indices(tiles["group"]) is not None:
            raise UsageError(f"--patients {name}={count}: the slides or patients of {name} are known; leave it out")
        if count > len(tiles):
            raise UsageError(f"--patients {name}={count}: {name} has {counted(len(tiles), 'tile')}, so at most as many")


def _looks(models: Sequence[Model]) -> Iterator[str]:
    """Sets that nothing should be chosen by and that were looked at more than once."""
    for model in models:
        for split, times in model.looks.items() if isinstance(model, Run) else ():
            if times > 1:
                yield f"{model.name}: {split} was looked at {times} times"


def _warnings(sections: Sequence[ModelSection]) -> Iterator[str]:
    """What a reader must know before believing the headline: each thing once, with the names of the models it is of."""
    models: dict[tuple[str, str], dict[str, None]] = {}
    for section in sections:
        for of, text in _warnings_of(section, sections):
            models.setdefault((of, text), {})[section.model.name] = None
    for (of, text), names in models.items():
        yield f"{', '.join(names)}{of}: {text}"


def _warnings_of(section: ModelSection, sections: Sequence[ModelSection]) -> Iterator[tuple[str, str]]:
    """Of one model: the set that it is about (", val", or nothing), and what is to be known of intervals, of missing
    scores, of its tiles, and of each reason for which there are no maps."""
    if not section.sets:
        yield "", "no scores and maps yet: training has not finished"
    for each in section.sets:
        predictions = each.evaluation.predictions
        for reason, tiles in predictions.left_out.items():
            yield f", {predictions.split}", f"{counted(tiles, 'tile')} not scored ({reason})"
        if each.evaluation.warning:
            yield f", {predictions.split}", each.evaluation.warning
    if section.training:
        yield from (("", f"{name}: {why}") for name, why in section.training.run.twins.items())
        yield from (("", text) for text in _of_the_audit(_audit(section, sections)))
    lacking: dict[str, list[str]] = {}
    for each in section.sets:
        if isinstance(each.maps, str) and section.training:
            lacking.setdefault(each.maps, []).append(each.evaluation.predictions.split)
    for reason, splits in lacking.items():
        yield "", f"no maps on {', '.join(splits)}: {reason}"


def _audit(section: ModelSection, sections: Sequence[ModelSection]) -> Audit | str:
    """The audit of a run's tiles, in whichever section it stands; or why there is none."""
    assert section.training
    audit = section.training.audit
    if not isinstance(audit, Elsewhere):
        return audit
    return _audit(next(each for each in sections if each.anchor == audit.anchor), sections)


def _of_the_audit(audit: Audit | str) -> list[str]:
    """What it warns of, and what is reached without morphology, even where that is little; or that there is none."""
    if isinstance(audit, str):
        return [] if audit == NOT_ASKED else [f"no audit of the tiles: {audit}"]
    shortcuts = [finding for finding in audit.findings if finding.topic == "shortcuts"]
    found = [finding for finding in audit.findings if finding.level in WARNED or finding in shortcuts[:1]]
    return [finding.text for finding in found]


def _room(models: Sequence[Model]) -> Room:
    """Tiles of a class, and their size, by what a page has for pictures; and what it has for a figure as outlines."""
    panels = max(1, sum(len(model.classes) * len(model.predictions) for model in models))
    pixels = PICTURE_BYTES / (2 * BYTES_PER_PIXEL * panels)
    tiles = min(max(int(pixels / EDGES[0] ** 2), 1), TILES)
    drawn = sum(FIGURES_OF_A_MODEL + FIGURES_OF_A_SET * len(model.predictions) for model in models)
    edge = min(max(math.isqrt(int(pixels / tiles)), EDGES[0]), EDGES[1])
    return Room(tiles, edge, OUTLINE_BYTES // max(drawn, FIGURES_OF_A_SET))


def _render(
    summary: Summary, search: SearchSection | None, sections: Sequence[ModelSection], warnings: Sequence[str]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(f"analysis.{name}", ".") for name in ("report", "table")]),
        autoescape=True,  # whatever the name of the template: class and file names come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {each.__name__: each for each in (cells.shown, cells.ends, cells.order, cells.is_number)}
    environment.globals |= {"zip": zip, "colour_bar": colour_bar_uri(), "measured_kind": str(MapKind())}
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        summary=summary,
        absent=ABSENT,
        search=search,
        sections=sections,
        names=[search.search.name] if search else [section.model.name for section in sections],
        warnings=warnings,
        script=Markup(script),  # ours, as it is: the page's policy names its digest and lets no other run
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
