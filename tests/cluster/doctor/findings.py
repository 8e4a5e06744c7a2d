"""What tests of findings share."""

from __future__ import annotations

from pathlib import Path

from cluster.doctor.finding import Finding


def assert_finding(finding: Finding, level: str, *parts: str) -> None:
    """It has this level, says these parts, and has a remedy exactly where it does not pass."""
    assert finding.level == level, finding.text
    assert bool(finding.remedy) == (level != "pass")
    for part in parts:
        assert part in finding.text + finding.remedy


def left_in(tmp_path: Path) -> list[Path]:
    """All that is left but the folder of all meetings, which other jobs may be about to use."""
    return [path for path in tmp_path.rglob("*") if path != tmp_path / "shared"]
