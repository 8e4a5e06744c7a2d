"""The doctor as a whole, on pretended nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.doctor.output import ORDER
from tests.cluster.doctor.findings import left_in
from tests.conftest import REPOSITORY


def doctor(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "COLUMNS": "120",
        **variables,
    }
    for name in [name for name in environment if name.startswith(("SLURM_", "RAY_"))]:
        del environment[name]
    places = ("--shared", str(folder / "shared"), "--storage", str(folder / "runs"))
    return subprocess.run(
        [sys.executable, "-m", "cluster", "doctor", *places, *flags],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_nodes_that_are_well(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    done = doctor(tmp_path, "--nodes", "local:2", "--store", str(stores[0]))
    assert (done.returncode, done.stderr) == (0, "")
    assert " fail " not in done.stdout.replace("0 fail", "")
    for part in (
        "2 ranks by gloo",
        "is as it was packed: 99 tiles",
        "fetch-weights imagenet1k_v2 --from FILE",
        "Ready.",
    ):
        assert part in " ".join(done.stdout.split())
    assert not left_in(tmp_path)


def test_two_nodes_with_a_damaged_store(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    store = shutil.copytree(stores[0], tmp_path / "store")
    with (store / "tiles.npy").open("r+b") as tiles:
        tiles.seek(-1, os.SEEK_END)
        last = tiles.read(1)[0]
        tiles.seek(-1, os.SEEK_END)
        tiles.write(bytes([last ^ 1]))
    done = doctor(tmp_path, "--nodes", "local:2", "--store", str(store), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["nodes"]) == (False, ["local0", "local1"])
    (damaged,) = [one for one in answer["findings"] if one["level"] == "fail"]
    assert (damaged["check"], damaged["node"]) == ("store", "local0")
    assert str(store) in damaged["found"]
    assert {one["check"] for one in answer["findings"]} == set(ORDER) - {"quota"}


def test_this_machine_with_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", CUDA_VISIBLE_DEVICES="77,78")
    assert done.returncode == 1
    (fail,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "fail"]
    assert fail["check"] == "GPUs"
    assert fail["found"].startswith("2 granted, torch sees 0 (torch ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    places = ("--shared", str(tmp_path / "shared"), "--storage", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "doctor", "--nodes", "local:2", *places],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(tmp_path.glob(".tissuegrid-doctor-mark-*")):
        assert process.poll() is None
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    assert process.wait(60) != 0
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not left_in(tmp_path)


def test_wrong_usage() -> None:
    for flags in (("--nodes", "remote:2"), ("--nodes", "local:0")):
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "doctor", *flags],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "give local:N" in done.stderr
