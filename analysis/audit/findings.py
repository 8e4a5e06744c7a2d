"""What an audit returns: findings in words, and the tables that they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import pandas as pd

LEVELS = PROBLEM, WARNING, NOTE = ("problem", "warning", "note")
"""A problem makes a score optimistic; a warning is to be known before a score is believed; a note is a figure to read
beside it, and nothing that was found wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that the audit has to say."""

    level: str
    topic: str
    """sets | copies | groups | classes | files | shortcuts | shift | perturbation."""
    text: str
    """A sentence for a reader; every number in it says what it is of."""


def by_level(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Problems first, then warnings, then notes; otherwise in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


@dataclass(frozen=True)
class Audit:
    """What was found, and every table behind it; a table without rows is one of which there was nothing to say."""

    split: str
    """How training and validation tiles are parted, in words that stand beside every number: "group-level split"."""
    said: str
    """Whence that split is, in a sentence: "the split of the run NAME"."""
    findings: tuple[Finding, ...]
    """Problems first, then warnings, then notes."""
    sets: pd.DataFrame
    """One row a set: `set, store, tiles, groups, tiles without group, blank tiles`."""
    duplicates: pd.DataFrame
    """One row a pair of copies, its tiles' columns ending in `a` and `b`; see `duplicates.find_duplicates`."""
    groups: pd.DataFrame
    """One row a group and set: `store, group, set, tiles, classes`."""
    classes: pd.DataFrame
    """One row a class: `class`, then the tiles and the groups of each set."""
    files: pd.DataFrame
    """One row a store and class: what the source files were like, and their blockiness."""
    shortcuts: pd.DataFrame
    """One row a baseline and set: its balanced accuracy with interval; see `shortcuts.score_shortcuts`."""
    colours: pd.DataFrame
    """One row a set and class: intensities and stains; see `shift.describe_colours`."""
    domains: pd.DataFrame
    """One row a pair of sets: how well colour tells them apart; see `shift.tell_apart`."""
    perturbation: pd.DataFrame
    """One row a perturbation: scores of a run's model; empty unless asked for; see `perturbation.perturb`."""

    def of_level(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def is_clean(self) -> bool:
        """Whether there is no problem and no warning."""
        return not (self.of_level(PROBLEM) or self.of_level(WARNING))

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Every table with its name, the findings first."""
        yield "findings", pd.DataFrame(self.findings, columns=[field.name for field in fields(Finding)])
        for field in fields(self):
            table = getattr(self, field.name)
            if isinstance(table, pd.DataFrame):
                yield field.name, table
