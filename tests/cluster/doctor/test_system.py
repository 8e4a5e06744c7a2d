"""What the doctor sees of a node: limits, memory, paths, ports, the token."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.doctor import system
from cluster.doctor.limited import Check, look
from tests.cluster.doctor.findings import assert_finding
from tests.cluster.doctor.mounts import tmpfs

UNLIMITED = float("inf")
root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_processes() -> None:
    assert_finding(system.processes(1024), "warn", "ulimit -u is 1,024", "ulimit -u 4096")
    assert_finding(system.processes(UNLIMITED), "pass", "unlimited")
    shell = subprocess.run(["bash", "-c", "ulimit -Su"], capture_output=True, text=True, check=True).stdout.strip()
    assert system.processes().text.replace(",", "") == f"ulimit -u is {shell}"


def test_locked_memory_matters_with_infiniband(tmp_path: Path) -> None:
    assert_finding(system.locked_memory(65536, tmp_path), "pass", "65.5 kB", "no InfiniBand")
    (tmp_path / "mlx5_0").mkdir()
    assert_finding(system.locked_memory(65536, tmp_path), "warn", "InfiniBand", "ulimit -l unlimited")
    assert_finding(system.locked_memory(UNLIMITED, tmp_path), "pass", "unlimited")


@root
def test_shared_memory(tmp_path: Path) -> None:
    for size, level in (("64m", "fail"), ("512m", "warn"), ("2g", "pass")):
        with tmpfs(tmp_path / size, f"size={size}") as folder:
            assert_finding(system.shared_memory(folder), level, str(folder))


def test_a_temporary_path_that_is_too_long_for_sockets() -> None:
    short = Path("/tmp/tg-1234567-0-0-n0001")
    assert_finding(system.temporary_path(short), "pass", "of 107 bytes")
    assert not list(Path("/tmp").glob(f"{short.name}*"))
    assert_finding(
        system.temporary_path(Path("/tmp/tg-1234567-0-0-gpu-a100-node-0001.cluster")), "fail", "of 107 bytes", "name"
    )
    (answer,) = look([Check("temporary path", 5, "look", lambda: [system.temporary_path(Path("/nowhere/tg-1"))])])
    assert_finding(answer, "fail", "No such file")


def test_a_port_of_an_address_that_is_not_here() -> None:
    assert_finding(system.port("127.0.0.1"), "pass")
    (answer,) = look([Check("port", 5, "look there", lambda: [system.port("192.0.2.1")])])  # RFC 5737: nobody's
    assert_finding(answer, "fail", "assign")


@pytest.mark.parametrize("own", [True, False])
def test_a_token_that_others_may_read(tmp_path: Path, own: bool) -> None:
    file = tmp_path / ".ray" / "auth_token" if own else tmp_path / "elsewhere"
    environment = {} if own else {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert_finding(system.token(environment, tmp_path), "pass", "makes its own")
    file.parent.mkdir(exist_ok=True)
    file.write_text("secret")
    for mode, level in ((0o644, "fail"), (0o640, "fail"), (0o600, "pass")):
        file.chmod(mode)
        assert_finding(system.token(environment, tmp_path), level, f"{mode:04o}")
        assert "secret" not in str(system.token(environment, tmp_path))
