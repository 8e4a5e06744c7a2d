"""What a measurement is kept with: the machine, the versions, the command, the day."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "numpy", "pillow")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""CPU features that decide how fast a network runs."""


def write(file: Path, measured: dict[str, Any]) -> None:
    """Writes a result as JSON, with all that tells where it comes from."""
    content = {
        "command": " ".join(["python", "-m", f"benchmarks.{file.stem}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        **measured,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The CPU (Linux), how many of its cores this process may use, its features, and the memory in GiB."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of several rounds, the lowest, the highest, and all of them in order."""
    rounded = [round(value, 3) for value in values]
    return {"median": statistics.median(rounded), "lowest": min(rounded), "highest": max(rounded), "rounds": rounded}
