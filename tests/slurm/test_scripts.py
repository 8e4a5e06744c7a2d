"""The batch scripts, read and not run."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))


def test_shellcheck_has_nothing_to_say() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(["shellcheck", *map(str, SCRIPTS)], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_two_scripts_differ_in_their_command_alone() -> None:
    texts = [(REPOSITORY / "slurm" / name).read_text() for name in ("train.sh", "tune.sh")]
    directives = [[line for line in text.splitlines() if line.startswith("#SBATCH")] for text in texts]
    assert [line.replace("tune", "train") for line in directives[1]] == directives[0]
