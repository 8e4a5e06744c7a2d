"""A job's Ray is its own: nobody without its token gets in, and nobody else can read that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.slurm.cluster import Slurm
from tests.slurm.training import OPTIONS, has_step, train
from trainer.rundir import RunDir

pytestmark = pytest.mark.slow

JOIN = "import os, sys, ray; ray.init(sys.argv[1]); print('nodes', len(ray.nodes()))"
STRANGER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_without_the_token_nobody_gets_in(slurm: Slurm, stores: tuple[Path, Path], tmp_path: Path) -> None:
    config = write_config(tmp_path / "mine.yaml", stores, tmp_path / "runs", {**OPTIONS, "loop.epochs": 500})
    job = train(slurm, config, "--scale.workers", "1", nodes=1, options=("-w", "n1"))
    job.wait_until(lambda: has_step(RunDir(tmp_path / "runs" / "small"), 1, 1), "step 1")
    (meeting,) = (token.parent for token in slurm.meetings.glob("*/token"))
    address = json.loads((meeting / "head.json").read_text())["address"]
    token = (meeting / "token").read_text()

    def joins(*variables: str) -> bool:
        tried = ("srun", "-N1", "-n1", "-w", "n1", "env", *variables, sys.executable, "-c", JOIN, address)
        return "nodes" in slurm(*tried, check=False)

    assert joins("RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={token}")
    assert not joins("RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={'0' * 64}")
    assert not joins("RAY_AUTH_MODE=disabled")

    (directory,) = Path("/tmp").glob(f"tg-{job.number}-*")
    for path in (meeting / "token", meeting / "head.json", directory / "ray"):
        command = [*STRANGER, "ls" if path.is_dir() else "cat", str(path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
    assert token not in " ".join(line for line in job.said.splitlines())
    job.cancel()
    job.end()
