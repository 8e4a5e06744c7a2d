"""The table, and the JSON."""

from __future__ import annotations

import json
import os

import pytest
from rich.console import Console

from cluster.doctor.finding import Amount, Finding, failed, from_word, passed, warned
from cluster.doctor.output import Report, print_table, rows, to_json

UNLIMITED = float("inf")


def made_report() -> Report:
    one = warned("storage", "use a faster one", "/runs: fsync ", Amount(1.5, "s"))
    two = warned("storage", "use a faster one", "/runs: fsync ", Amount(2.5, "s"))
    findings = [
        *(Finding(**{**vars(it), "node": node}) for it, node in ((one, "n1"), (two, "n2"))),
        Finding(**{**vars(failed("versions", "one .venv", "numpy [1.26]")), "node": "n2"}),
        Finding(**{**vars(passed("versions", "Python 3.11")), "node": "n1"}),
        Finding(**{**vars(passed("processes", Amount(UNLIMITED))), "node": "n1"}),
    ]
    return Report(("n1", "n2"), tuple(findings))


def test_equal_findings_of_nodes_are_one_row_with_a_range() -> None:
    versions, python, slow, processes = rows(made_report())
    assert (versions.finding.level, versions.nodes, python.nodes) == ("fail", "n2", "n1")
    assert (slow.nodes, slow.text) == ("all 2", "/runs: fsync 1.50 s to 2.50 s")
    assert processes.text == "unlimited"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_all(width: int) -> None:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    print_table(made_report(), console)
    console.file.close()
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for part in ("numpy [1.26]", "-> one .venv", "-> use a faster one", "2 nodes: 2 pass, 1 warn, 1 fail."):
        assert part in text


def test_findings_survive_the_way_between_nodes() -> None:
    for finding in made_report().findings:
        assert from_word(json.loads(json.dumps(finding.word))) == finding


def test_json_is_strict() -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    answer = json.loads(to_json(made_report()), parse_constant=refuse)
    assert answer["ok"] is False
    assert answer["findings"][0]["amounts"] == [{"value": 1.5, "unit": "s"}]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Amount(0.0123, "s"), "12 ms"),
        (Amount(0.0999, "s"), "0.10 s"),
        (Amount(0.25, "s"), "0.25 s"),
        (Amount(0, "B"), "0 B"),
        (Amount(0.4, "B/s"), "0.4 B/s"),
        (Amount(999, "B"), "999 B"),
        (Amount(999_600, "B"), "1 MB"),
        (Amount(1_500_000, "B/s"), "1.5 MB/s"),
        (Amount(2e14, "B"), "200 TB"),
        (Amount(4096), "4,096"),
        (Amount(16_207_724), "16.2 million"),
    ],
)
def test_amounts(amount: Amount, text: str) -> None:
    assert str(amount) == text
