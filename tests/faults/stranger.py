"""Another user of the same node, and what that one tries. It can import nothing more: our Python is not its own."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import grpc
import torch.distributed as dist

from tests.faults.starts import FORKS

T = TypeVar("T")
NOBODY = 65534
ANSWER_S = 5.0
CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "JobInfoGcsService/GetAllJobInfo",
    "ActorInfoGcsService/GetAllActorInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "NodeManagerService/GetSystemConfig",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
    "LogService/ListLogs",
    "RayletDriver/ClusterInfo",
)
"""Of Ray's services, what changes nothing where it is answered."""
PAGES = ("/", "/api/version", "/api/jobs/", "/nodes?view=summary", "/api/cluster_status", "/metrics", "/logs")


def ask(function: Callable[..., T], *arguments: Any) -> T:
    """What a function answers to another user."""
    receiving, sending = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_as_nobody, args=(sending, function, arguments))
    process.start()
    sending.close()
    answer: T = receiving.recv()
    process.join()
    return answer


def _as_nobody(answer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    assert os.getresuid() == (NOBODY,) * 3
    answer.send(function(*arguments))


def readable(roots: Iterable[Path]) -> list[Path]:
    """The files below some folders that can be opened."""
    return _opened(path for root in roots for path in _below(root) if path.is_file())


def writable(roots: Iterable[Path]) -> list[Path]:
    """The files and folders below some folders that can be changed."""
    found = [path for root in roots for path in _below(root)]
    return [path for path in found if os.access(path, os.W_OK) and not path.is_symlink()]


def with_secret(files: Iterable[Path], secret: bytes) -> list[Path]:
    """The files that can be read and hold it."""
    found = []
    for file in files:
        with suppress(OSError):
            if secret in file.read_bytes():
                found.append(file)
    return found


def connected(sockets: Iterable[Path]) -> list[Path]:
    """The unix sockets that take a connection."""
    found = []
    for path in sockets:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as tried:
            tried.connect(str(path))
            found.append(path)
    return found


def answers(ports: Iterable[int], token: str | None) -> dict[int, list[str]]:
    """What ports answer to one who has this token, or none: calls of Ray's services, pages, a torch store's value."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = {
            port: [pool.submit(_calls, port, token), pool.submit(_pages, port, token), pool.submit(_values, port)]
            for port in ports
        }
        said = {port: [word for each in asked for word in each.result()] for port, asked in found.items()}
    return {port: words for port, words in said.items() if words}


def _calls(port: int, token: str | None) -> list[str]:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answered = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", metadata=metadata, timeout=ANSWER_S)
                answered.append(call)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    break  # it does not speak this language
    return answered


def _pages(port: int, token: str | None) -> list[str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answered = []
    for page in PAGES:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
            connection.request("GET", page, headers=headers)
            if (answer := connection.getresponse()).status < 400:
                answered.append(f"{page} {answer.status}")
            connection.close()
        except (OSError, http.client.HTTPException):
            break
    return answered


def _values(port: int) -> list[str]:
    with suppress(RuntimeError, OSError):
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=ANSWER_S))
        store.set("stranger", "was here")
        return ["torch's store"]
    return []


def _below(root: Path) -> list[Path]:
    """What can be seen of a folder."""
    found = [(Path(folder), names) for folder, _, names in os.walk(root)]
    return [root, *(folder / name for folder, names in found for name in names), *(folder for folder, _ in found[1:])]


def _opened(paths: Iterable[Path]) -> list[Path]:
    found = []
    for path in paths:
        with suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            found.append(path)
    return found
