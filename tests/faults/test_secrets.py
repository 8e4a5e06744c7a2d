"""Secrets of the environment, looked for in all that a run writes, says and starts."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.__main__ import main as analysis
from tests.command import Command
from tests.conftest import write_config
from tests.faults.ledger import Fault
from tests.object_store import Store, free_port
from tests.trainer.test_launch import OPTIONS
from tests.trainer.tiles.tissue import write
from trainer.__main__ import main

NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "DB_PASSWORD")
LOOK_EVERY_S = 0.3


class Looker:
    """Looks for secrets in files and command lines, and counts what it has looked at."""

    def __init__(self) -> None:
        self.secrets = {name: f"canary-{uuid.uuid4().hex}" for name in NAMES}
        self.found: set[str] = set()
        self.looked: dict[Path, tuple[int, int]] = {}
        self.command_lines: set[bytes] = set()

    def in_bytes(self, data: bytes, where: object) -> None:
        self.found |= {f"{name} in {where}" for name, secret in self.secrets.items() if secret.encode() in data}

    def in_files(self, folder: Path) -> None:
        """In every file that is new or has changed since the last look."""
        for file in files(folder):
            with suppress(OSError):  # gone since
                status = file.stat()
                if self.looked.get(file) != (status.st_size, status.st_mtime_ns):
                    self.looked[file] = (status.st_size, status.st_mtime_ns)
                    self.in_bytes(file.read_bytes(), file)

    def in_command_lines(self) -> None:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                line = file.read_bytes()
                self.command_lines.add(line)
                self.in_bytes(line, file)


def files(folder: Path) -> Iterator[Path]:
    with suppress(OSError):  # folders come and go
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.slow
@pytest.mark.fault(24, "secrets in the environment of a run over Ray with a mirror, its report and its predictions", "")
def test_no_secret_is_written_or_shown(
    fault: Fault, stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.promise = "in no file, command line, output or object of the mirror"
    looker = Looker()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    for name, secret in looker.secrets.items():
        monkeypatch.setenv(name, secret)
    before = set(Path("/tmp").glob("tg-*"))
    mirror = Store(free_port())
    try:
        options = {**OPTIONS, "loop.checkpoint_every": 1, "run.mirror": mirror.uri("bucket/mirror")}
        command = Command(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options))
        while command.process.poll() is None:
            looker.in_command_lines()
            for folder in (tmp_path, *(set(Path("/tmp").glob("tg-*")) - before)):
                looker.in_files(folder)
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(LOOK_EVERY_S)
        code, output = command.end()
        assert code == 0, output
        objects = mirror.objects("")
    finally:
        mirror.kill()
    run = str(tmp_path / "runs" / "small")
    assert analysis(["report", run, "--out", str(tmp_path / "report"), "--measured-maps", "0"]) == 0
    assert main(["predict", run, str(stores[1]), "--out", str(tmp_path / "new.parquet"), "--debug"]) == 0
    looker.in_bytes(output.encode(), "the output")
    looker.in_files(tmp_path)
    for name, data in objects.items():
        looker.in_bytes(data, name)
    for file in tmp_path.rglob("*.parquet"):
        table = pq.read_table(file)
        looker.in_bytes(f"{table.schema.metadata}{table.to_pydict()}".encode(), file)
    assert not looker.found
    looker.in_files(write(tmp_path / "planted", looker.secrets["HF_TOKEN"].encode()).parent)
    assert looker.found, "what is there is found"
    of_ray = sum("session_" in str(file) for file in looker.looked)
    assert of_ray
    assert objects
    fault.times = len(NAMES)
    fault.figure = (
        f"0 found in {len(looker.looked)} files ({of_ray} of Ray's), {len(objects)} objects, "
        f"{len(looker.command_lines)} command lines"
    )


@pytest.mark.fault(24, "secrets in the URI of a mirror", "refused, and not repeated")
def test_a_uri_with_a_secret_is_refused_and_not_repeated(
    fault: Fault, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {}))
    for uri in (
        "s3://someone:CANARY@bucket/path",
        "s3://bucket/path?access_key=a&secret_key=CANARY",
        "s3://bucket/path?session_token=CANARY",
        "abfs://container@account/path?sas_token=CANARY&sig=CANARY",
    ):
        assert main(["train", config, "--debug", "--run.mirror", uri]) == 2
        said = capsys.readouterr()
        assert "must hold no credentials" in said.err
        assert "CANARY" not in said.err + said.out
        fault.times += 1
    assert not (tmp_path / "runs").exists()
    fault.figure = f"{fault.times} of {fault.times} refused"
