"""What the doctor says of GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.allocation import visible_gpus
from cluster.doctor import gpus
from tests.cluster.doctor.findings import assert_finding
from tests.conftest import REPOSITORY


def seen(*devices: str, driver: str | None = None, problems: tuple[str, ...] = ()) -> gpus.Seen:
    return gpus.Seen("2.15.0", "13.2", driver, devices, problems)


def test_gpus_that_were_granted_and_that_torch_does_not_see() -> None:
    granted = visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"})
    assert_finding(
        gpus.judge(granted, seen()), "fail", "2 granted, torch sees 0", "CUDA 13.2", "driver none", "nvidia-smi"
    )
    assert_finding(gpus.judge(granted, seen("A100", driver="570.1")), "fail", "torch sees 1", "driver 570.1")
    assert_finding(gpus.judge(granted, seen("A100", "A100")), "pass", "2 A100")


def test_other_gpus() -> None:
    assert_finding(gpus.judge(1, seen("A100", "H200")), "warn", "1 granted, torch sees 2")
    assert_finding(gpus.judge(None, seen("A100", "H200")), "pass", "1 A100, 1 H200")
    assert_finding(gpus.judge(0, seen()), "pass", "none granted, none seen")
    assert_finding(gpus.judge(None, seen("A100", problems=("GPU 0: no kernel image",))), "fail", "no kernel image")


@pytest.mark.parametrize(
    ("value", "count"), [(None, None), ("", 0), ("NoDevFiles", 0), ("-1", 0), ("3", 1), ("GPU-1,GPU-2", 2)]
)
def test_visible_gpus(value: str | None, count: int | None) -> None:
    assert visible_gpus({} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == count


def test_the_drivers_version() -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12.2.0"
    assert gpus.driver_version(text) == "570.86.15"
    assert gpus.driver_version("no such thing") is None


def test_a_torch_that_does_not_import_says_why(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    answer = gpus.ask(60, {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    assert answer == "torch does not work: ImportError: libcudart.so.13: cannot open shared object file"
