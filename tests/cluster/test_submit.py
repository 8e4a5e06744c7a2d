"""Jobs of a real Ray cluster that wants a token: their exit codes, their ends, and training as one of them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.head import Head, running_head
from tests.conftest import REPOSITORY, write_config
from trainer.checkpoint import listed
from trainer.rundir import RunDir

LIMIT_S = 240
TRAIN = ("python", "-m", "trainer", "train")
OPTIONS: dict[str, object] = {
    "model.unfrozen_depth": 1,
    "augment.input_size": 64,
    "loop.epochs": 4,
    "loop.checkpoint_every": 1,
    "scale.workers": 1,
}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running
    assert not running.directory.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with little to upload."""
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "greeting").write_text("good morning\n")
    return tmp_path / "upload"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def job_named_in(process: subprocess.Popen[str]) -> str:
    """The id of a job, as soon as it has been submitted."""
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "is submitted" not in line:
        pass
    return line.split()[2]


def test_submit_returns_the_jobs_exit_code_and_its_log(head: Head, folder: Path) -> None:
    uploads = ["--working-dir", str(folder), "--", "sh", "-c"]
    ends = {"exit 0": 0, "exit 75": 75, "exit 7": 7, "kill -9 $$": 137}
    jobs = [head.submit(*uploads, f"cat greeting; echo 'two  spaces'; {end}") for end in ends]
    for process, code in zip(jobs, ends.values(), strict=True):
        returned, output = ended(process)
        assert returned == code, output
        assert "1 files, 0.0 MiB" in output
        assert {"good morning", "two  spaces"} < set(output.splitlines()), output


def test_a_job_outlives_its_follower_and_can_be_stopped(head: Head, folder: Path) -> None:
    left, stopped = (head.submit("--working-dir", str(folder), "--", "sleep", "600") for _ in range(2))
    names = [job_named_in(left), job_named_in(stopped)]
    wait_until(lambda: all("RUNNING" in head.ray("status", name)[1] for name in names))
    left.send_signal(signal.SIGTERM)
    code, output = ended(left)
    assert code == 128 + signal.SIGTERM
    assert f"ray job stop --address {head.address} {names[0]}" in output
    assert "RUNNING" in head.ray("status", names[0])[1]
    assert all(head.ray("stop", name)[0] == 0 for name in names)
    code, output = ended(stopped)
    assert code == 143
    assert "was stopped" in output


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
    ],
    ids=["no token", "wrong token"],
)
def test_without_the_token_nothing_is_run(head: Head, folder: Path, variables: dict[str, str], words: str) -> None:
    mark = folder / "mark"
    code, output = ended(head.submit("--working-dir", str(folder), "--", "touch", str(mark), **variables))
    assert code == 1
    assert words in output
    assert "RAY_AUTH_TOKEN_PATH" in output
    assert "Traceback" not in output
    assert not mark.exists()


def test_secrets_are_not_uploaded(head: Head, folder: Path) -> None:
    (folder / ".env").write_text("PASSWORD=1")
    code, output = ended(head.submit("--working-dir", str(folder), "--", "true"))
    assert code == 2
    assert ".env: looks like a secret" in output


def test_who_does_not_answer_is_named(head: Head, folder: Path) -> None:
    command = head.submit("--address", "http://127.0.0.1:1", "--working-dir", str(folder), "--", "true")
    code, output = ended(command)
    assert code == 1
    assert "http://127.0.0.1:1: does not answer" in output


@pytest.mark.slow
def test_training_as_a_job_is_stopped_and_goes_on(head: Head, stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Plain `ray job submit`: Ray asks a job to end, and kills it 3 s later."""
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", OPTIONS)
    run = RunDir(tmp_path / "runs" / "small")
    submit = ("submit", "--working-dir", str(REPOSITORY), "--submission-id")
    code, output = head.ray(*submit, "first", "--no-wait", "--", *TRAIN, str(config))
    assert code == 0, output
    wait_until(lambda: bool(listed(run)) and listed(run)[0].step >= 2)
    assert head.ray("stop", "first")[0] == 0
    assert "was stopped" in head.ray("status", "first")[1]
    stopped_at = listed(run)[0].step

    code, output = head.ray(*submit, "again", "--", *TRAIN, str(config))
    assert code == 0, output
    assert run.attempts()[2]["resumed_step"] >= stopped_at  # its workers may outlive the driver for a moment
    assert "python -m analysis report" in output
    assert {file.stem for file in run.predictions_dir.iterdir()} == {"val", "elsewhere"}
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == OPTIONS["loop.epochs"]
    assert not run.lock_file.exists()


def test_a_run_is_not_kept_in_what_is_lost_with_the_job(head: Head, stores: tuple[Path, Path], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {})
    code, output = ended(head.submit("--", *TRAIN, str(config), "--run.storage", "runs"))
    assert code == 2
    assert "run.storage" in output
    assert "lost with it" in output
