"""What can only be told by comparing nodes."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from cluster.doctor.exchange import ClockBounds
from cluster.doctor.finding import Amount, Finding, failed, passed, warned

PACKAGES = (
    "torch",
    "torchvision",
    "ray",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "pyarrow",
    "pillow",
    "pydantic",
    "pydantic-settings",
    "safetensors",
    "optuna",
    "psutil",
)
MOST_APART_S = 1.0
MISSING = "missing"
UNSEEN = "--shared must be a folder that every node sees and may write to; is the node up (sinfo -N)?"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that nodes exchange data with, here."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = MISSING
    return found


def compare_versions(by_node: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Each node against what most nodes have; where there is no majority, against the first."""
    names = next(iter(by_node.values()), {})
    usual = {name: Counter(found[name] for found in by_node.values()).most_common(1)[0][0] for name in names}
    return [replace(_judge_versions(found, usual), node=node) for node, found in by_node.items()]


def _judge_versions(found: Mapping[str, str], usual: Mapping[str, str]) -> Finding:
    missing = [name for name, its in found.items() if its == MISSING]
    if missing:
        return failed("versions", "make .venv, and start with its Python", f"not installed: {', '.join(missing)}")
    others = [f"{name} {its}, elsewhere {usual[name]}" for name, its in found.items() if its != usual[name]]
    if others:
        remedy = "one .venv on a file system that all nodes see; no modules, PYTHONPATH or ~/.local that differ"
        return failed("versions", remedy, "; ".join(others))
    shown = ", ".join(f"{name} {found[name]}" for name in ("Python", "torch", "ray", "numpy"))
    return passed("versions", f"{shown}; {len(found) - 4} more")


def judge_clock(bounds: ClockBounds) -> Finding:
    """A node's clock against the first node's: the heartbeat of runs and the times of files need them to agree."""
    if bounds.low > bounds.high:
        return warned("clock", "ask the site whether its time service (chrony, ntpd) runs", "it jumps")
    apart, known = (bounds.low + bounds.high) / 2, (bounds.high - bounds.low) / 2
    found = (Amount(abs(apart), "s"), " (± ", Amount(known, "s"), ") from the first node's")
    if max(bounds.low, -bounds.high) > MOST_APART_S:
        which = "ahead by " if apart > 0 else "behind by "
        return warned("clock", "ask the site whether its time service (chrony, ntpd) runs", which, *found)
    if known > MOST_APART_S:
        return warned("clock", "compare by hand: srun --ntasks-per-node=1 date +%s.%N", *found)
    return passed("clock", *found)


def judge_presence(names: Sequence[str], came: Mapping[int, str], answered: Sequence[int]) -> list[Finding]:
    """Names the nodes that have not come (`names` are those that should), and those that came and do not answer."""
    absent = [name for name in names if name not in came.values()]
    silent = [name for rank, name in came.items() if rank not in answered]
    findings = [failed("nodes", UNSEEN, "no word from it") for _ in absent] + [
        failed("nodes", "look at that node: something holds its checks for ever", "has come, and does not answer")
        for _ in silent
    ]
    if not findings:
        return [replace(passed("nodes", "answers"), node=name) for name in came.values()]
    return [replace(finding, node=name) for finding, name in zip(findings, [*absent, *silent], strict=True)]
