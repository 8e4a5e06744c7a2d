"""The GPUs of a node: those that were granted against those on which torch can work.

`python -m cluster.doctor.gpus` prints as JSON what torch sees. It is a program of its own, because a driver that does
not answer holds whoever asks it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.doctor.finding import Finding, failed, passed, warned
from cluster.doctor.limited import program

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Seen:
    """What torch sees: the devices' names, the versions around them, and what went wrong when they were tried."""

    torch: str
    cuda: str | None
    driver: str | None
    devices: tuple[str, ...]
    problems: tuple[str, ...]


def ask(limit_s: float, environment: Mapping[str, str] | None = None) -> Seen | str:
    """What torch sees; or why it cannot be told."""
    ended = program([sys.executable, "-m", "cluster.doctor.gpus"], limit_s, environment)
    if ended.code is None:
        return f"torch does not say within {limit_s:.0f} s what GPUs there are"
    if ended.code != 0:
        return f"torch does not work: {ended.last_line}"
    answer = ended.answer
    return Seen(**{**answer, "devices": tuple(answer["devices"]), "problems": tuple(answer["problems"])})


def judge(granted: int | None, seen: Seen) -> Finding:
    """GPUs granted (None: nobody has said how many) against GPUs seen."""
    build = f"torch {seen.torch} built for " + ("the CPU" if seen.cuda is None else f"CUDA {seen.cuda}")
    about = f"{build}, driver {seen.driver or 'none'}"
    count = len(seen.devices)
    if seen.problems:
        return failed("GPUs", "this build of torch has no code for this GPU or driver: see nvidia-smi", *seen.problems)
    if granted is not None and count < granted:
        remedy = "nvidia-smi must list them, and its driver must be one for this CUDA; else install a torch that fits"
        return failed("GPUs", remedy, f"{granted} granted, torch sees {count} ({about})")
    if granted is not None and count > granted:
        remedy = "the others may be someone else's: ask for GPUs (--gpus-per-node), or set CUDA_VISIBLE_DEVICES"
        return warned("GPUs", remedy, f"{granted} granted, torch sees {count} ({about})")
    if not count:
        return passed("GPUs", f"none granted, none seen: training uses the CPU ({build})")
    kinds = ", ".join(f"{seen.devices.count(name)} {name}" for name in dict.fromkeys(seen.devices))
    return passed("GPUs", f"{kinds} ({about})")


def driver_version(text: str) -> str | None:
    """The version in the text of NVIDIA's kernel module."""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return match[0] if match else None


def look() -> Seen:
    """Asks torch, and computes something on each device."""
    import torch

    devices, problems = [], []
    for number in range(torch.cuda.device_count()):
        try:
            devices.append(torch.cuda.get_device_name(number))
            torch.ones(64, 64, device=f"cuda:{number}").mm(torch.ones(64, 64, device=f"cuda:{number}")).sum().item()
        except RuntimeError as error:
            problems.append(f"GPU {number}: {str(error).splitlines()[0]}")
    driver = driver_version(DRIVER.read_text()) if DRIVER.exists() else None
    return Seen(torch.__version__, torch.version.cuda, driver, tuple(devices), tuple(problems))


if __name__ == "__main__":
    print(json.dumps(asdict(look())))
