"""The table as a file, to standard output: for programs in full precision, for papers and pages as people read it."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from analysis.search import Trial
from analysis.table import notes
from analysis.table.columns import Column, TrialTable, selection
from trainer.errors import UsageError

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(table: TrialTable, form: str) -> None:
    """Writes the table to standard output as `csv`, `parquet`, `html` or `markdown`.

    Raises:
        UsageError: for parquet in a terminal, which could not show it.
    """
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet: is not for a terminal; write it to a file: ... --format parquet > FILE")
    sys.stdout.buffer.write(WRITERS[form](table))
    sys.stdout.flush()
    if form in ("csv", "parquet"):  # which have no place for them
        for warning in notes.warnings(table.search):
            print(f"warning: {warning}", file=sys.stderr)


def as_text(value: object) -> object:
    """What a spreadsheet would compute when it opens the file, such as a path that begins with `=`, made text by `'`.

    As OWASP says ("CSV injection"); numbers stay numbers.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def as_csv(table: TrialTable) -> bytes:
    """All columns, numbers in full precision; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(as_text(column.name) for column in table.columns)
    writer.writerows([as_text(column.value(trial)) for column in table.columns] for trial in table.rows)
    return text.getvalue().encode()


def as_parquet(table: TrialTable) -> bytes:
    """All columns, numbers in full precision; nothing where there is no value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {column.name: _array([column.value(trial) for trial in table.rows]) for column in table.columns}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _array(values: Sequence[Any]) -> Any:
    """A column of one type; what mixes types, or is too large for one, becomes text, as in the table."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        with suppress(pa.ArrowInvalid, OverflowError):
            return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def as_markdown(table: TrialTable) -> bytes:
    """A pipe table with its caption and notes, to paste into a paper."""
    columns = table.shown
    rows = [[column.text(trial) for column in columns if column.text] for trial in table.rows]
    headings, right = [column.title for column in columns], [column.right for column in columns]
    parts = [
        f"**{in_markdown(notes.title(table.search))}**",
        pipes(headings, right, rows),
        "  \n".join(map(in_markdown, _under(table))),
    ]
    if final := notes.finals(table.search):
        parts += [
            f"**{in_markdown(notes.finals_title(table.search))}**",
            pipes(notes.FINAL_HEADINGS, (False, False, True, True, False), [row.texts for row in final]),
            in_markdown("; ".join(notes.finals_notes(table.search))),
        ]
    return ("\n\n".join(parts) + "\n").encode()


def pipes(headings: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `right` says which columns stand at the right."""
    lines = [headings, ["--:" if is_right else ":--" for is_right in right]]
    escaped = [[in_markdown(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [*lines, *escaped])


def in_markdown(text: str) -> str:
    """Text in which Markdown sees no marks."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", " ".join(text.split()))


def as_html(table: TrialTable) -> bytes:
    """A page that stands alone."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.table", "."),
        autoescape=True,  # whatever the name of the template: names and values come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(table=page(table)).encode()


def page(table: TrialTable) -> dict[str, Any]:
    """What the template of the table is filled with."""
    return {
        "name": table.search.name,
        "title": notes.title(table.search),
        "columns": [(column.title, column.right) for column in table.shown],
        "rows": [
            (
                selection(table.search, trial) or "",
                trial.status,
                [_cell(column, trial) for column in table.shown],
                "; ".join(trial.said),
            )
            for trial in table.rows
        ],
        "notes": _under(table),
        "finals": [row.texts for row in notes.finals(table.search)],
        "finals_headings": notes.FINAL_HEADINGS,
        "finals_title": notes.finals_title(table.search),
        "finals_note": "; ".join(notes.finals_notes(table.search)),
    }


def order(value: Any) -> str:
    """What a browser sorts by: a number, or the text in small letters; nothing where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, (int, float)) else str(value).lower()


def _cell(column: Column, trial: Trial) -> tuple[str, bool, str]:
    """Its text, whether that stands at the right, and what it is sorted by."""
    return column.text(trial) if column.text else "", column.right, order(column.value(trial))


def _under(table: TrialTable) -> list[str]:
    """The lines under the table, where words stand for the marks."""
    legend = notes.legend(table, good="within 1 SE:", chosen="")
    return [*legend, notes.sources(table.search), *notes.warnings(table.search)]


WRITERS = {"csv": as_csv, "parquet": as_parquet, "html": as_html, "markdown": as_markdown}
