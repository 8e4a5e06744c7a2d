"""Another user on the node of a training run: a process of another uid looks into everything that the run has there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.command import wait_until
from tests.conftest import REPOSITORY, write_config
from tests.faults import stranger
from tests.faults.ledger import Fault
from tests.faults.ray_processes import command_line
from tests.leftovers import started_by
from trainer.checkpoint import listed
from trainer.rundir import RunDir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user"),
]
COMMANDS = {
    "with a Ray of its own": (),
    "on a cluster of two nodes": ("-m", "cluster", "run", "--nodes", "local:2", "--shared", "{shared}", "--"),
}


@pytest.fixture(scope="module")
def _another_user() -> None:
    """It is there before the run is, and so is nothing that the run has started."""
    assert stranger.ask(os.getuid) == stranger.NOBODY


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as many projects' are."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def training(folder: Path, stores: tuple[Path, Path], launcher: tuple[str, ...]) -> Iterator[None]:
    """The real command, once it trains."""
    options: dict[str, object] = {"loop.epochs": 1000, "scale.workers": 2, "loop.checkpoint_every": 1}
    config = write_config(folder / "config.yaml", stores, folder / "runs", options)
    before = [part.format(shared=folder / "shared") for part in launcher]
    words = [*before, *([sys.executable] if before else []), "-m", "trainer", "train", str(config)]
    with (folder / "said").open("w") as said:
        command = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=said, stderr=said, start_new_session=True
        )
    try:
        run = RunDir(folder / "runs" / "small")
        wait_until(lambda: listed(run) != [] or command.poll() is not None, "a first step")
        assert command.poll() is None, (folder / "said").read_text()
        yield
    finally:
        command.terminate()
        assert command.wait(120) == 75


def token_of(processes: list[psutil.Process]) -> str:
    (file,) = {process.environ().get("RAY_AUTH_TOKEN_PATH") for process in processes} - {None}
    return Path(str(file)).read_text()


def listening(processes: list[psutil.Process]) -> set[int]:
    return {
        found.laddr.port
        for process in processes
        for found in process.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    }


def family(mark: Path) -> list[psutil.Process]:
    """What a test has started, and what these have: Ray's agents write their names over the environment that marks."""
    found = set(started_by(mark))
    for process in list(found):
        with suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return list(found)


def agents_listen(processes: list[psutil.Process]) -> bool:
    """Whether each node's agent, which serves what there is to see of it, has come to its last port."""
    agents = [process for process in processes if "DashboardAgent" in "".join(command_line(process)[:1])]
    return agents != [] and all(
        "127.0.0.1" in {found.laddr.ip for found in agent.net_connections("tcp") if found.status == psutil.CONN_LISTEN}
        for agent in agents
    )


@pytest.mark.usefixtures("_another_user", "nothing_is_left")
@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.fault(23, "another user connects to torch's collectives", "no connection accepted")
@pytest.mark.fault(23, "another user on the node", "no secret readable, nothing writable, nothing of Ray's answers")
def test_another_user_gets_nothing(faults: list[Fault], stores: tuple[Path, Path], tmp_path: Path, how: str) -> None:
    """All that is asked for holds of Ray. Torch's collectives authenticate nobody: SECURITY.md says what follows."""
    for fault in faults:
        fault.injected += f", of a run {how}"
        fault.times += 1
    user, torchs = faults
    others = {*Path("/tmp").glob("tg-*"), *Path("/dev/shm").iterdir()}
    with open_folder() as folder, training(folder, stores, COMMANDS[how]):
        wait_until(lambda: agents_listen(family(tmp_path)), "Ray's agents, which come after the first steps")
        processes = family(tmp_path)
        token = token_of(processes)

        places = [folder, *{*Path("/tmp").glob("tg-*"), *Path("/dev/shm").iterdir()}.difference(others)]
        readable = stranger.ask(stranger.readable, places)
        assert folder / "runs" / "small" / "metrics.jsonl" in readable, "the other user can look at all"
        assert stranger.ask(stranger.with_secret, readable, token.encode()) == []
        assert stranger.ask(stranger.writable, places) == []

        private = [Path(f"/proc/{process.pid}/{name}") for process in processes for name in ("environ", "mem", "maps")]
        assert stranger.ask(stranger.readable, private) == []
        spoken = [Path(f"/proc/{process.pid}/cmdline") for process in processes]
        assert stranger.ask(stranger.readable, spoken) != []
        assert stranger.ask(stranger.with_secret, spoken, token.encode()) == []

        sockets = {Path(found.laddr) for one in processes for found in one.net_connections("unix") if found.laddr}
        assert sockets
        assert stranger.ask(stranger.connected, sockets) == []

        ports = listening(processes)
        with_token = stranger.ask(stranger.answers, ports, token)
        assert {call for said in with_token.values() for call in said} >= set(stranger.CALLS[:4]), "it asks rightly"
        for guess in (None, "0" * 64):
            found = stranger.ask(stranger.answers, ports, guess)
            assert set(with_token) <= set(found), "each is there"
            answering = {port: said for port, said in found.items() if said != [stranger.REFUSED]}
            assert {word for said in answering.values() for word in said} <= {stranger.TORCH_STORE}, answering
    user.figure = (
        f"{len(readable)} files readable, none with the token; {len(processes)} processes' environments and "
        f"{len(sockets)} unix sockets closed; {len(found) - len(answering)} ports refuse"
    )
    torchs.held, torchs.figure = False, f"{len(answering)} port, of torch's store, answers anybody (SECURITY.md)"
