"""A cluster of pretended nodes on this machine: real Ray, from its start to the last process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.allocation import local
from cluster.early import EarlyStops
from cluster.rendezvous import Rendezvous, RendezvousError
from tests.cluster.test_allocation import task
from tests.conftest import REPOSITORY

SHOW_NODES = "import ray; ray.init(); print('nodes', sum(n['Alive'] for n in ray.nodes()))"


def start(shared: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`python -m cluster run` over two pretended nodes."""
    run = [sys.executable, "-m", "cluster", "run", "--nodes", "local:2", "--shared", str(shared), *options, "--"]
    return subprocess.Popen(
        [*run, *command],
        cwd=REPOSITORY,
        env={**os.environ, "STARTED_BY": str(shared)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def processes(shared: Path) -> dict[int, str]:
    """Command lines of all that a test has started, by pid."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("STARTED_BY") == str(shared):
                found[process.pid] = " ".join(process.cmdline())
    return found


def private_directories() -> list[Path]:
    """Those of pretended nodes, whose jobs have names of six letters; others of this user may come and go."""
    return list(Path("/tmp").glob("tg-??????-*"))


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """The rendezvous folder; afterwards nothing is left, there or anywhere."""
    directories = set(private_directories())
    shared = tmp_path / "meetings"
    yield shared
    assert not processes(shared)
    wait_for(lambda: not set(private_directories()) - directories)
    assert not list(shared.glob("*"))


def test_the_command_sees_all_nodes_and_its_code_is_the_answer(shared: Path) -> None:
    process = start(shared, sys.executable, "-c", f"{SHOW_NODES}; raise SystemExit(7)")
    said, complained = process.communicate(timeout=180)
    assert process.returncode == 7, complained
    assert "nodes 2" in said
    assert "Ray cluster of 2 nodes is up" in complained


def test_a_request_to_stop_reaches_the_command_once(shared: Path, tmp_path: Path) -> None:
    """INT to the whole process group, as a terminal sends it."""
    code = (
        "import signal, sys, time, pathlib; asked = [];"
        "[signal.signal(n, lambda n, _: asked.append(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)];"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not asked: time.sleep(0.05)\n"
        "time.sleep(1); sys.exit(75 if asked == [signal.SIGINT] else 1)"
    )
    process = start(shared, sys.executable, "-c", code, str(tmp_path / "runs"))
    wait_for(lambda: (tmp_path / "runs").exists())
    os.killpg(process.pid, signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 75, complained


def test_a_command_that_is_not_there_is_named_before_anything_starts(shared: Path) -> None:
    process = start(shared, "no-such-command")
    _, complained = process.communicate(timeout=180)
    assert process.returncode == 2
    assert complained == "error: node local0: there is no command no-such-command; name one after --\n"


def test_what_a_signal_ends_has_its_code(shared: Path, tmp_path: Path) -> None:
    """A stop with a checkpoint is 75, and only the command can say so."""
    wait = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    process = start(shared, sys.executable, "-c", wait, str(tmp_path / "runs"))
    wait_for(lambda: (tmp_path / "runs").exists())
    process.send_signal(signal.SIGUSR1)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, complained


def test_the_death_of_the_head_ends_the_command(shared: Path, tmp_path: Path) -> None:
    wait = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    process = start(shared, sys.executable, "-c", wait, str(tmp_path / "runs"))
    wait_for(lambda: (tmp_path / "runs").exists())
    (gcs,) = (pid for pid, text in processes(shared).items() if "gcs/gcs_server" in text)
    os.kill(gcs, signal.SIGKILL)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "node local0: Ray has ended" in complained
    assert "gcs_server" in complained


def test_a_stop_before_all_have_joined_is_a_stop(shared: Path) -> None:
    process = start(shared, "true")
    wait_for(lambda: any(shared.glob("*/token")))
    process.terminate()
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 75, complained


def test_a_killed_launcher_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    wait = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    process = start(shared, sys.executable, "-c", wait, str(tmp_path / "runs"))
    wait_for(lambda: (tmp_path / "runs").exists())
    process.kill()  # the one that was started; its pretended nodes are others
    process.communicate(timeout=60)
    wait_for(lambda: not processes(shared) and not any(shared.iterdir()))


@pytest.mark.slow
def test_a_folder_that_is_lost_on_the_way_ends_nothing(shared: Path, tmp_path: Path) -> None:
    go_on = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(6); sys.exit(7)"
    process = start(shared, sys.executable, "-c", go_on, str(tmp_path / "runs"))
    wait_for(lambda: (tmp_path / "runs").exists())
    shutil.rmtree(shared)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 7, complained


def test_what_a_killed_start_left_behind_is_removed_after_a_day(tmp_path: Path) -> None:
    left, fresh, other = (tmp_path / name for name in ("left", "fresh", "thesis"))
    for meeting in (left, fresh):
        Rendezvous(meeting).open()
    other.mkdir()
    for folder in (left, other):
        os.utime(folder, (0, 0))
    Rendezvous(tmp_path / "start").open()
    assert {path.name for path in tmp_path.iterdir()} == {"fresh", "thesis", "start"}


def test_a_job_that_is_stopped_early_three_times_in_a_row_is_given_up(tmp_path: Path) -> None:
    starts = EarlyStops(tmp_path, task())
    assert [starts.too_many() for _ in range(2)] == [False, False]
    starts.forget()
    assert [starts.too_many() for _ in range(3)] == [False, False, True]
    assert not list(tmp_path.iterdir())
    pretended = EarlyStops(tmp_path, local("x", 0, 1))
    assert [pretended.too_many() for _ in range(4)] == [False] * 4


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    meeting = Rendezvous(tmp_path / "shared" / "start")
    meeting.path.mkdir(parents=True)
    meeting.path.chmod(0o777)
    with pytest.raises(RendezvousError, match="open to others"):
        meeting.open()


def test_a_node_that_cannot_join_is_named(shared: Path) -> None:
    process = start(shared, "true", options=("--join-s", "0.5"))
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"error: node local\d: .* in 0 s", complained)


@pytest.mark.parametrize("nodes", ["local:0", "local", "three"])
def test_wrong_nodes_are_refused(nodes: str) -> None:
    run = [sys.executable, "-m", "cluster", "run", "--nodes", nodes, "--", "true"]
    done = subprocess.run(run, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "give local:N" in done.stderr


def wait_for(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
