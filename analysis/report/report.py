"""From run directories to one self-contained page, with its figures and tables as files beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pandas as pd

from analysis.collect import Run
from analysis.panels import ABSENT, TILES
from analysis.report.search_section import SearchSection, search_section
from analysis.report.sections import RunSection, colour_bar_uri, run_section, write_csv
from analysis.report.tables import headline
from analysis.search import Search, is_search
from analysis.table import notes
from trainer.errors import UsageError
from trainer.rundir import RunDir
from trainer.tiles.store import META

PICTURE_BYTES = 2_500_000
"""What all tiles and overlays of a page may take; more of them are drawn smaller."""
BYTES_PER_PIXEL = 0.5
EDGES = (64, 224)
FORMATS = {
    "AUC": ".4f",
    "macro AUC": ".4f",
    "train/loss": ".4f",
    "val/loss": ".4f",
    "lr": ".3g",
    "tiles_per_s": ".1f",
    "seconds": ".1f",
}
"""How numbers of a column are written, other than with three decimals."""


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    page: Path
    warnings: list[str]
    """What it lacks, and how to get it."""


def write_report(runs: Sequence[Run], out: Path, search: Search | None = None) -> Report:
    """Writes `index.html` for these runs (`collect`), and its figures (PNG) and tables (CSV) beside it.

    With a `search`, it is the page of that search, and the runs are its final ones.

    Raises:
        UsageError: for an `out` that is no folder, or lies in a run directory or a tile store.
    """
    try:
        _refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
        return _write(runs, out, search)
    except OSError as error:
        place = error.filename or out
        raise UsageError(f"{place}: cannot be written ({error.strerror}); name another --out") from None


def _refuse_foreign(out: Path) -> None:
    """Run and search directories and tile stores hold what their contract names, and nothing else."""
    place = out.resolve()
    for folder in (place, *place.parents):
        for file, what in ((RunDir(folder).identity_file, "run directory"), (folder / META, "tile store")):
            if file.is_file():
                raise UsageError(f"--out {out}: lies in the {what} {folder}; name a folder outside of it")
        if is_search(folder):
            raise UsageError(f"--out {out}: lies in the search directory {folder}; name a folder outside of it")


def _write(runs: Sequence[Run], out: Path, search: Search | None) -> Report:
    edge = _edge(runs)
    table = headline(runs)
    write_csv(table, out / "headline.csv")
    sections = [run_section(run, number, out, edge) for number, run in enumerate(runs, start=1)]
    searched = search_section(search, out) if search else None
    lacking = list(_warnings(sections))
    report = Report(out / "index.html", [*(notes.warnings(search) if search else []), *lacking])
    report.page.write_text(_render(table, searched, sections, lacking), encoding="utf-8")
    return report


def _warnings(sections: Sequence[RunSection]) -> Iterator[str]:
    """One line for each run without scores, and for each reason for which a run lacks maps."""
    for section in sections:
        if not section.sets:
            yield f"{section.run.name}: no scores and maps yet: training has not finished"
        lacking: dict[str, list[str]] = {}
        for each in section.sets:
            if isinstance(each.maps, str):
                lacking.setdefault(each.maps, []).append(each.predictions.split)
        for reason, splits in lacking.items():
            yield f"{section.run.name}: no maps on {', '.join(splits)}: {reason}"


def _edge(runs: Sequence[Run]) -> int:
    """Side in pixels at which every tile and overlay of the page fits in `PICTURE_BYTES`."""
    cases = sum(TILES * len(run.classes) * len(run.predictions) for run in runs)
    fits = math.isqrt(int(PICTURE_BYTES / (2 * BYTES_PER_PIXEL * max(1, cases))))
    return min(max(fits, EDGES[0]), EDGES[1])


def _render(
    table: pd.DataFrame, search: SearchSection | None, sections: Sequence[RunSection], warnings: Sequence[str]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(f"analysis.{name}", ".") for name in ("report", "table")]),
        autoescape=True,  # whatever the name of the template: class and file names come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.globals["zip"] = zip
    return environment.get_template("page.html.j2").render(
        headline=table,
        absent=ABSENT,
        search=search,
        sections=sections,
        names=[search.search.name] if search else [section.run.name for section in sections],
        warnings=warnings,
        colour_bar=colour_bar_uri(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def shown(value: object, column: str = "") -> str:
    """A table's value as text: a dash where there is none, thousands parted, decimals by the column."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, float):
        return format(value, FORMATS.get(column, ".3f"))
    return f"{value:,}" if isinstance(value, int) else str(value)
