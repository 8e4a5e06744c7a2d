"""Runs copied to an object store, and to a folder: cut off, gone on with elsewhere, brought back, refused."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import MakeConfig, write_config
from tests.object_store import Store, contents, free_port, local
from tests.processes import on_ranks
from tests.runs import weights
from tests.trainer.conftest import Look
from tests.trainer.test_copier import copy
from trainer.__main__ import main
from trainer.mirror import Mirror
from trainer.plan import Plan, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir
from trainer.scale import this_machine
from trainer.worker import work


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process have as many threads as those in others."""
    monkeypatch.setattr("trainer.launch.this_machine", lambda: replace(this_machine(), each=((1, 0),)))


def start(config: object) -> Plan:
    plan, data, base = make_plan(config, this_machine())  # type: ignore[arg-type]
    write_run(plan, data, base)
    return plan


def test_the_mirror_is_the_storage_byte_for_byte(make_config: MakeConfig, place: tuple[str, Look]) -> None:
    """Also what was pruned: of 6 checkpoints 2 are left."""
    uri, look = place
    options = {"loop.checkpoint_every": 2, "loop.keep": 2, "scale.workers": 1}
    plan = start(make_config(**options, **{"run.mirror": uri}))
    said: list[Json] = []
    assert work(plan, Ranks(), lambda message: bool(said.append(message))).status == "done"
    assert [message for message in said if message["phase"] == "mirror"] == []
    found = look()
    assert found == local(plan.run)
    assert len([name for name in found if name.endswith("manifest.json")]) == 2
    assert {"small/run.json", "small/predictions/elsewhere.parquet", "small/attempts/0001.json"} < set(found)


def _train_killed_once_mirrored(ranks: Ranks, plan: Plan, step: int) -> None:
    """Kills the group at `step`, once the mirror has a checkpoint to go on from."""
    uri = plan.config.run.mirror
    assert uri is not None

    def report(message: Json) -> bool:
        if message.get("step", 0) >= step:
            deadline = time.monotonic() + 60
            while not any("manifest" in name for name in Mirror(uri, plan.run).sizes(plan.run.checkpoints_dir)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(0, signal.SIGKILL)
        return False

    work(plan, ranks, report)


def test_on_another_machine_the_same_command_ends_bit_identical(
    stores: tuple[Path, Path], tmp_path: Path, store: Store, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A schedule, checkpoints in mid-epoch; every process killed, then the whole storage lost."""
    options: dict[str, object] = {
        "optim.schedule": "onecycle",
        "scale.workers": 1,
        "loop.checkpoint_every": 2,
    }
    alone = write_config(tmp_path / "alone.yaml", stores, tmp_path / "runs", {**options, "run.name": "alone"})
    assert main(["train", str(alone), "--debug"]) == 0
    expected = weights(RunDir(tmp_path / "runs" / "alone"), 12)

    mirrored = {**options, "run.mirror": store.uri(f"bucket/{tmp_path.name}"), "run.storage": str(tmp_path / "lost")}
    plan = start(make_config(**mirrored))
    assert on_ranks(1, _train_killed_once_mirrored, plan, 7) is None
    shutil.rmtree(plan.run.storage)

    capsys.readouterr()
    assert main(["train", str(tmp_path / "config.yaml"), "--debug"]) == 0
    said = capsys.readouterr().out
    assert "was not in" in said
    assert "attempt 2 goes on from step-" in said
    assert plan.run.attempts()[2]["resumed_step"] > 0
    assert weights(plan.run, 12) == expected
    assert store.objects(f"{tmp_path.name}/") == local(plan.run)


@pytest.mark.usefixtures("credentials")
def test_without_its_mirror_training_goes_on_and_the_same_command_copies_the_rest(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(free_port())
    try:
        uri = store.uri("bucket")
        plan = start(make_config(**{"loop.epochs": 3, "scale.workers": 1, "run.mirror": uri}))
        said: list[str] = []

        def report(message: Json) -> bool:
            if message["phase"] == "mirror":
                said.extend(message["lines"])
            if message["phase"] == "epoch" and message["record"]["epoch"] == 1:
                store.kill()
            return False

        assert work(plan, Ranks(), report).status == "done"
        assert len(plan.run.read_metrics()) == 3
        problem, end = said
        assert "cannot be brought up to date" in problem
        assert "training goes on" in problem
        assert "the same command copies the rest" in end

        command = ["train", str(tmp_path / "config.yaml"), "--debug"]
        assert main(command) == 0
        assert "cannot be used" in capsys.readouterr().out, "a run that is here does not need its mirror"
        shutil.move(plan.run.path, tmp_path / "kept")
        assert main(command) == 2, "but a run that may be there alone must not begin anew"
        assert "run.mirror" in capsys.readouterr().err
        shutil.move(tmp_path / "kept", plan.run.path)

        store = Store(store.port)
        assert main(command) == 0
        assert store.objects("") == local(plan.run)
    finally:
        store.kill()


def test_a_run_that_went_on_elsewhere_is_left_alone_there(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two machines, each with a storage of its own and one mirror; the first comes back."""
    uri = (tmp_path / "mirror").as_uri()
    options: dict[str, object] = {"run.mirror": uri, "loop.epochs": 1}
    here = str(write_config(tmp_path / "here.yaml", stores, tmp_path / "here", options))
    there = str(write_config(tmp_path / "there.yaml", stores, tmp_path / "there", options))
    assert main(["train", here, "--debug"]) == 0
    shutil.copytree(tmp_path / "mirror", tmp_path / "before")
    assert main(["train", there, "--debug"]) == 0
    assert "nothing to do" in capsys.readouterr().out, "all of it came from the mirror"

    run = RunDir(tmp_path / "there" / "small")
    assert run.claim_attempt(2, {"resumed_step": 0, "host": "there"})
    base = next((run.storage / "weights").iterdir())
    assert copy(uri, run, base, attempt=2) == []
    after = contents(tmp_path / "mirror")

    mine = RunDir(tmp_path / "here" / "small")
    (line,) = copy(uri, mine, base, attempt=1)
    assert "elsewhere" in line
    assert mine.claim_attempt(2, {"resumed_step": 0, "host": "here"})
    (line,) = copy(uri, mine, base, attempt=2)
    assert "elsewhere" in line
    assert main(["train", here, "--debug"]) == 2
    said = capsys.readouterr().err
    assert "run.mirror" in said
    assert "attempts/0002.json" in said
    assert contents(tmp_path / "mirror") == after


def test_fresh_moves_the_mirrored_run_aside_too(
    stores: tuple[Path, Path], tmp_path: Path, place: tuple[str, Look]
) -> None:
    uri, look = place
    options: dict[str, object] = {"run.mirror": uri, "loop.epochs": 1}
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options))
    assert main(["train", config, "--debug"]) == 0
    shutil.rmtree(tmp_path / "runs" / "small")
    assert main(["train", config, "--debug", "--fresh", "--run.seed", "8"]) == 0
    run = RunDir(tmp_path / "runs" / "small")
    assert run.read_identity()["identity"]["run.seed"] == 8
    assert len(run.attempts()) == 1
    found = look()
    assert {name: data for name, data in found.items() if name.startswith("small/")} == {
        name: data for name, data in local(run).items() if name.startswith("small/")
    }
    assert [name for name in found if name.startswith("small.") and name.endswith("/run.json")]


@pytest.fixture
def forbidding() -> Iterator[str]:
    """A store that answers everything by 403."""

    class Forbid(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Forbid) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"s3://bucket/a?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        server.shutdown()


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("no-such-bucket/a", "NO_SUCH_BUCKET"),
        ("forbidding", "ACCESS_DENIED"),
        ("unreachable", "NETWORK_CONNECTION"),
        ("bucket/path", "must be a URI"),
        ("nope://bucket/path", "nope"),
        ("s3:///path", "bucket"),
        ("s3://bucket/path?endpoint=x", "endpoint"),
        ("file:///proc/nowhere", "/proc/nowhere"),
        ("s3://AKIA:hush-hush@bucket/path", "environment"),
        ("s3://AKIA:hush/hush-hush@bucket/path", "environment"),
        ("abfs://c@account/path?client_secret=hush-hush", "environment"),
    ],
)
def test_a_wrong_mirror_gets_one_clear_message(
    stores: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    store: Store,
    forbidding: str,
    uri: str,
    word: str,
) -> None:
    known = {
        "no-such-bucket/a": store.uri("no-such-bucket/a"),
        "forbidding": forbidding,
        "unreachable": f"s3://bucket?endpoint_override=127.0.0.1:{free_port()}&scheme=http",
    }
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {"run.mirror": known.get(uri, uri)})
    assert main(["train", str(config), "--debug"]) == 2
    out, said = capsys.readouterr()
    assert said.startswith("error: ")
    assert "run.mirror" in said
    assert word in said
    assert "hush" not in said + out
    assert "never-shown" not in said + out
    assert not (tmp_path / "runs").exists(), "nothing was begun"
