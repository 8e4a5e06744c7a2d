"""Runs copied to a real object store on loopback, and to a folder: killed, cut off, taken over, and brought back."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import boto3
import pytest
import torch

from tests.conftest import MakeConfig, write_config
from tests.processes import on_ranks
from trainer import checkpoint as ck
from trainer import mirror
from trainer.__main__ import main
from trainer.copier import Copier
from trainer.mirror import Mirror
from trainer.plan import Plan, make_plan, write_run
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir
from trainer.scale import this_machine
from trainer.worker import work

Look = Callable[[], dict[str, bytes]]


class Store:
    """moto's S3 server in a process of its own, with one empty bucket."""

    def __init__(self, port: int):
        self.port = port
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
        self.client.create_bucket(Bucket="bucket")

    def _answers(self) -> bool:
        try:
            urlopen(f"http://127.0.0.1:{self.port}/moto-api/").close()
        except (URLError, ConnectionError):
            return False
        return True

    def uri(self, place: str) -> str:
        return f"s3://{place}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Content of every object by its key after the prefix, read by another client than the program's."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        contents = {key: self.client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}
        return {key.removeprefix(prefix): data for key, data in contents.items() if not key.endswith("/")}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def _credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process have as many threads as those in others."""
    monkeypatch.setattr("trainer.launch.this_machine", lambda: replace(this_machine(), cores=1))


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    store = Store(free_port())
    yield store
    store.kill()


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Look]:
    """The URI of an empty mirror, and what is in it."""
    if request.param == "file":
        folder = tmp_path / "mirror"
        return folder.as_uri(), lambda: contents(folder)
    store: Store = request.getfixturevalue("store")
    return store.uri(f"bucket/{tmp_path.name}"), lambda: store.objects(f"{tmp_path.name}/")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def local(run: RunDir) -> dict[str, bytes]:
    """What a mirror should hold: all of a storage root but the lock."""
    return {name: data for name, data in contents(run.storage).items() if not name.endswith("lock.json")}


def start(config: object) -> Plan:
    plan, data, base = make_plan(config, this_machine())  # type: ignore[arg-type]
    write_run(plan, data, base)
    return plan


def small_run(folder: Path) -> tuple[RunDir, Path]:
    """A run directory as far as a mirror looks at it, of attempt 1, and its base weights."""
    run = RunDir(folder / "small")
    run.path.mkdir(parents=True)
    run.identity_file.write_text('{"run": "small"}')
    assert run.claim_attempt(1, {"resumed_step": 0})
    ck.store_base(run, "0" * 64, b"weights")
    return run, run.weights_file("0" * 64)


def commit(run: RunDir, step: int, attempt: int = 1, size: int = 4) -> ck.Checkpoint:
    return ck.commit(run, step, attempt, {"fc.weight": torch.rand(size)}, {"position": {"step": step}}, {})


def copy(uri: str, run: RunDir, base: Path, attempt: int = 1) -> list[str]:
    """Copies all there is now; returns what was said."""
    said: list[str] = []
    Copier(uri, run, attempt, base, said.append).finish()
    return said


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


def _copy_killed_in(_: Ranks, uri: str, run: RunDir, base: Path, file: Path) -> None:
    def stream(source: object, sink: object) -> None:
        data = source.read()  # type: ignore[attr-defined]
        if source.name == str(file):  # type: ignore[attr-defined]
            sink.write(data[: len(data) // 2])  # type: ignore[attr-defined]
            os.killpg(0, signal.SIGKILL)
        sink.write(data)  # type: ignore[attr-defined]

    mirror._stream = stream
    copy(uri, run, base)


@pytest.mark.parametrize(
    ("place", "name"), [("s3", "trained.safetensors"), ("file", "manifest.json")], indirect=["place"]
)
def test_killed_while_it_copies_half_a_checkpoint_does_not_count(
    tmp_path: Path, place: tuple[str, Look], name: str
) -> None:
    uri, look = place
    run, base = small_run(tmp_path / "runs")
    first = commit(run, 1)
    assert copy(uri, run, base) == []
    second = commit(run, 2, size=6_000_000)  # 24 MB: sent in several parts
    assert on_ranks(1, _copy_killed_in, uri, run, base, second.path / name) is None
    assert f"small/checkpoints/{second.path.name}/manifest.json" not in look()

    elsewhere = RunDir(tmp_path / "elsewhere" / "small")
    elsewhere.storage.mkdir()
    said = Mirror(uri, elsewhere).fetch()
    assert said[-1].endswith(first.path.name)
    assert [c.path.name for c in ck.listed(elsewhere)] == [first.path.name]
    assert ck.find_flaw(ck.listed(elsewhere)[0]) is None
    assert {file.name for file in elsewhere.storage.iterdir()} == {"small"}

    assert copy(uri, run, base) == []
    assert {key: data for key, data in look().items() if not key.endswith(".part")} == local(run)


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


def final_weights(run: RunDir) -> str:
    newest = ck.listed(run)[0]
    assert newest.step == 12
    return hashlib.sha256((newest.path / "trained.safetensors").read_bytes()).hexdigest()


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
    expected = final_weights(RunDir(tmp_path / "runs" / "alone"))

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
    assert final_weights(plan.run) == expected
    assert store.objects(f"{tmp_path.name}/") == local(plan.run)


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


def test_what_failed_is_tried_again_at_the_next_checkpoint(tmp_path: Path) -> None:
    run, base = small_run(tmp_path / "runs")
    folder = tmp_path / "mirror"
    folder.write_text("in the way")
    said: queue.Queue[str] = queue.Queue()
    copier = Copier(folder.as_uri(), run, 1, base, said.put)
    assert "cannot be brought up to date" in said.get(timeout=60)
    copier.wake()
    folder.unlink()
    commit(run, 1)
    copier.wake()
    assert "up to date again" in said.get(timeout=60)
    commit(run, 2)
    copier.finish()
    assert contents(folder) == local(run)
    assert said.empty()


def test_a_checkpoint_that_is_pruned_meanwhile_is_copied_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a mirror slower than the checkpoints come would never get one."""
    run, base = small_run(tmp_path / "runs")
    first = commit(run, 1)
    expected = contents(first.path)
    found: list[dict[str, bytes]] = []
    stream = mirror._stream

    def slow(source: object, sink: object) -> None:
        name = str(getattr(source, "name", ""))
        if first.path.exists() and str(first.path) in name:
            for step in (2, 3):
                commit(run, step)
            ck.prune(run, keep=2)
            assert not first.path.exists()
        if "step-00000003" in name:
            found.append(contents(tmp_path / "mirror" / "small" / "checkpoints" / first.path.name))
        stream(source, sink)

    monkeypatch.setattr(mirror, "_stream", slow)
    assert copy((tmp_path / "mirror").as_uri(), run, base) == []
    assert found[0] == expected
    assert contents(tmp_path / "mirror") == local(run), "and it is removed once a newer one is there"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_attempt_that_lost_its_run_writes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run, base = small_run(tmp_path / "runs")
    commit(run, 1)
    folder = tmp_path / "mirror"
    stream = mirror._stream

    def taken_over(source: object, sink: object) -> None:
        if "trained" in str(getattr(source, "name", "")):
            assert run.claim_attempt(2, {"resumed_step": 0})
        stream(source, sink)

    if when == "before":
        assert run.claim_attempt(2, {"resumed_step": 0})
    else:
        monkeypatch.setattr(mirror, "_stream", taken_over)
    (line,) = copy(folder.as_uri(), run, base)
    assert "attempt 2 has taken the run over" in line
    found = contents(folder)
    assert not [name for name in found if "manifest" in name or "metrics" in name]
    assert bool(found) == (when == "meanwhile")


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


def test_a_damaged_checkpoint_of_the_mirror_is_not_gone_on_from(tmp_path: Path, store: Store) -> None:
    run, base = small_run(tmp_path / "runs")
    first, second = commit(run, 1), commit(run, 2)
    assert copy(store.uri(f"bucket/{tmp_path.name}"), run, base) == []
    key = f"{tmp_path.name}/small/checkpoints/{second.path.name}/state.pt"
    data = bytearray(store.objects(key)[""])
    data[len(data) // 2] ^= 1
    store.client.put_object(Bucket="bucket", Key=key, Body=bytes(data))
    elsewhere = RunDir(tmp_path / "elsewhere" / "small")
    elsewhere.storage.mkdir()
    said = Mirror(store.uri(f"bucket/{tmp_path.name}"), elsewhere).fetch()
    assert f"{second.path.name} of the mirror is not used: state.pt" in said[0]
    assert [c.path.name for c in ck.listed(elsewhere)] == [first.path.name]


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
