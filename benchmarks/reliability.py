"""Writes the table of docs/reliability.md from what the tests of faults and `benchmarks.plain_ray` have kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

FAULTS = (RESULTS / "faults.json", RESULTS / "soak.json")
PLAIN_RAY = RESULTS / "plain_ray.json"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
HEADER = ("", "injected", "times", "promise", "figure", "", "plain Ray Train")
Row = Mapping[str, Any]


def main() -> None:
    """Puts the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


def table() -> str:
    """The table, in Markdown: a row for each fault; what plain Ray Train does beside the first row of a number."""
    faults = [row for file in FAULTS for row in json.loads(file.read_text(encoding="utf-8"))]
    faults.sort(key=lambda row: row["number"])
    plain: dict[int, str] = {}
    for row in json.loads(PLAIN_RAY.read_text(encoding="utf-8"))["faults"]:
        plain[row["number"]] = "; ".join(filter(None, (plain.get(row["number"]), _plain(row))))
    lines = [HEADER, ("---",) * len(HEADER), *_rows(faults, plain)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _rows(faults: list[Row], plain: dict[int, str]) -> Iterator[tuple[str, ...]]:
    for row in faults:
        number = int(row["number"])
        cells = (str(number), row["injected"], str(row["times"]), row["promise"], row["figure"], _held(row))
        yield tuple(cell.replace("|", "\\|") for cell in (*cells, plain.pop(number, "")))


def _held(row: Row) -> str:
    return "held" if row["held"] else "**not held**"


def _plain(row: Row) -> str:
    return f"{row['injected']}: {row['happened']}; {row['figure']} ({_held(row)})"


if __name__ == "__main__":
    main()
