"""The report on all nodes: a table for a person, JSON for a program."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.allocation import nodes_counted
from cluster.doctor.finding import Amount, Finding, Level

ORDER = (
    *("nodes", "versions", "clock", "GPUs", "all-reduce"),
    *("storage", "shared storage", "space", "quota", "store", "weights"),
    *("processes", "locked memory", "shared memory", "temporary path", "port", "token"),
)
LOG_WIDTH = 200
STYLES: dict[Level, str] = {"pass": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Report:
    """All findings on all nodes."""

    nodes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 where anything fails."""
        return int(any(finding.level == "fail" for finding in self.findings))


@dataclass(frozen=True)
class Row:
    """Equal findings of several nodes; the amounts in them are ranges."""

    finding: Finding
    nodes: str
    text: str


def rows(report: Report) -> list[Row]:
    """One row for all nodes that say the same of a check; in the order of the checks, the worst first."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault(_sameness(finding), []).append(finding)
    worst = ("fail", "warn", "pass")
    ordered = sorted(groups.values(), key=lambda group: (ORDER.index(group[0].check), worst.index(group[0].level)))
    return [Row(group[0], _nodes(group, report.nodes), "".join(_merge(group))) for group in ordered]


def show(report: Report, as_json: bool) -> None:
    """Prints the report."""
    if as_json:
        print(to_json(report))
    else:
        # In a job's log, paths stay in one piece.
        print_table(report, Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH))


def print_table(report: Report, console: Console) -> None:
    """Check, nodes, level, and what was found with its remedy below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for name, style in (("check", "bold"), ("nodes", "")):
        table.add_column(name, style=style, overflow="fold", max_width=16)
    table.add_column("", no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for row in rows(report):
        remedy = f"\n[bold]->[/] {escape(row.finding.remedy)}" if row.finding.remedy else ""
        level = f"[{STYLES[row.finding.level]}]{row.finding.level}[/]"
        table.add_row(row.finding.check, escape(row.nodes), level, escape(row.text) + remedy)
    console.print(table)
    console.print(summary(report))


def summary(report: Report) -> str:
    """The report in a line."""
    levels = [row.finding.level for row in rows(report)]
    verdict = "something here fails" if report.exit_code else "ready"
    parts = ", ".join(f"{levels.count(level)} {level}" for level in STYLES)
    return f"{nodes_counted(len(report.nodes))}: {parts}. {verdict.capitalize()}."


def to_json(report: Report) -> str:
    """Every finding on every node, unmerged."""
    findings = [
        {
            "check": one.check,
            "node": one.node,
            "level": one.level,
            "found": one.text,
            "amounts": [_plain(part) for part in one.found if isinstance(part, Amount)],
            "remedy": one.remedy,
        }
        for one in report.findings
    ]
    return json.dumps({"ok": report.exit_code == 0, "nodes": report.nodes, "findings": findings}, indent=2)


def _plain(amount: Amount) -> dict[str, object]:
    """JSON has no infinity: null is no limit."""
    return {"value": amount.value if math.isfinite(amount.value) else None, "unit": amount.unit}


def _sameness(finding: Finding) -> tuple[object, ...]:
    shape = tuple(part.unit if isinstance(part, Amount) else part for part in finding.found)
    return finding.check, finding.level, finding.remedy, shape


def _nodes(group: Sequence[Finding], nodes: Sequence[str]) -> str:
    named = list(dict.fromkeys(finding.node for finding in group))
    return f"all {len(nodes)}" if len(named) == len(nodes) > 1 else ", ".join(named)


def _merge(group: Sequence[Finding]) -> Iterable[str]:
    for parts in zip(*(finding.found for finding in group), strict=True):
        low, high = min(parts, key=_value), max(parts, key=_value)
        yield str(low) if str(low) == str(high) else f"{low} to {high}"


def _value(part: str | Amount) -> float:
    return part.value if isinstance(part, Amount) else 0.0
