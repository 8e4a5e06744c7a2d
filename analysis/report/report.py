"""From run directories to one self-contained page, with its figures and tables as files beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pandas as pd

from analysis.collect import Run
from analysis.panels import ABSENT
from analysis.report.sections import RunSection, colour_bar_uri, run_section, write_csv
from analysis.report.tables import headline
from trainer.errors import UsageError

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


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Writes `index.html` for these runs (`collect`), and its figures (PNG) and tables (CSV) beside it.

    Returns:
        The page.

    Raises:
        UsageError: for an `out` that is no folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write(runs, out)
    except OSError as error:
        place = error.filename or out
        raise UsageError(f"{place}: cannot be written ({error.strerror}); name another --out") from None


def _write(runs: Sequence[Run], out: Path) -> Path:
    edge = _edge(runs)
    table = headline(runs)
    write_csv(table, out / "headline.csv")
    sections = [run_section(run, number, out, edge) for number, run in enumerate(runs, start=1)]
    page = out / "index.html"
    page.write_text(_render(table, sections), encoding="utf-8")
    return page


def _edge(runs: Sequence[Run]) -> int:
    """Side in pixels at which every tile and overlay of the page fits in `PICTURE_BYTES`."""
    cases = sum(3 * len(run.classes) * len(run.predictions) for run in runs)
    fits = math.isqrt(int(PICTURE_BYTES / (2 * BYTES_PER_PIXEL * max(1, cases))))
    return min(max(fits, EDGES[0]), EDGES[1])


def _render(table: pd.DataFrame, sections: Sequence[RunSection]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report", "."),
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
        sections=sections,
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
