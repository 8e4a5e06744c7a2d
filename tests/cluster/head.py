"""A running Ray cluster of one node, with token and dashboard, as others run it: for jobs to be submitted to.

`python -m tests.cluster.head CPUS` prints where it is as a line of JSON, and ends it all when its standard input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.addresses import free_port
from cluster.allocation import local
from cluster.private import private_directory, set_environment, write_token
from cluster.processes import adopt_orphans, end_all, start
from cluster.ray_cluster import authentication, head_argv
from tests.conftest import REPOSITORY

START_S = 120.0
LOCAL = "127.0.0.1"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class Head:
    """Where the cluster is, and the environment in which its user works."""

    address: str
    directory: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def ray(self, verb: str, *arguments: str) -> tuple[int, str]:
        """Runs `ray job VERB ...` in the repository; its exit code and what it printed."""
        ended = subprocess.run(
            [*RAY, "job", verb, "--address", self.address, *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return ended.returncode, ended.stdout

    def submit(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Starts `python -m cluster submit ...` in the repository."""
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster", "submit", "--address", self.address, *arguments],
            cwd=REPOSITORY,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    @property
    def ray_address(self) -> str:
        """Where drivers join it."""
        return (self.directory / "ray" / "ray_current_cluster").read_text().strip()

    def state(self, what: str) -> Any:
        """What the cluster itself says of `actors`, `nodes`, ... (its state API), or of what is in use (`usage`)."""
        if what == "usage":
            return self._get("/api/cluster_status")["clusterStatus"]["loadMetricsReport"]["usage"]
        return self._get(f"/api/v0/{what}")["result"]["result"]

    def _get(self, path: str) -> Any:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]


@contextmanager
def running_head(cpus: int = 2) -> Iterator[Head]:
    """The cluster, for as long as the context lasts; it believes that it has so many cores."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.head", str(cpus)],
        cwd=REPOSITORY,
        env={**clean, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    head = None
    try:
        said = json.loads(supervisor.stdout.readline())
        environment = {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": said["token"]}
        head = Head(said["address"], Path(said["token"]).parent, environment)
        yield head
    finally:
        for process in head.started if head else []:
            process.kill()
            process.communicate()
        supervisor.stdin.close()
        code = supervisor.wait(60)
        supervisor.stdout.close()
    assert code == 0, "the cluster has left something behind"


def _supervise(cpus: int) -> None:
    adopt_orphans()
    with private_directory() as directory:
        token = directory / "token"
        write_token(token)
        set_environment(authentication(token))
        os.chdir(directory)  # what jobs run has to be uploaded
        try:
            address = _start(directory, cpus)
            print(json.dumps({"address": address, "token": str(token)}), flush=True)
            sys.stdin.read()
        finally:
            left = end_all()
    sys.exit(1 if left else 0)


def _start(directory: Path, cpus: int) -> str:
    port = free_port(LOCAL)
    address = f"http://{LOCAL}:{port}"
    dashboard = [
        "--include-dashboard=true",
        f"--dashboard-host={LOCAL}",
        f"--dashboard-port={port}",
        "--dashboard-agent-listen-port=0",
    ]
    argv = head_argv(replace(local("jobs", 0, 1), cpus=cpus), LOCAL, directory / "ray", free_port(LOCAL))
    ray = start([*argv, *dashboard], os.environ, directory / "ray.log", shielded=True)
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {Path(token).read_text()}"}
    )
    deadline = time.monotonic() + START_S
    while not (_answers(request) and (directory / "ray" / "ray_current_cluster").exists()):
        if ray.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((directory / "ray.log").read_text())
        time.sleep(0.2)
    return address


def _answers(request: urllib.request.Request) -> bool:
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    _supervise(int(sys.argv[1]))
