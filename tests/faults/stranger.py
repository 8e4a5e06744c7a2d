"""Another user of the same node, and what that one tries. It can import nothing more: our Python is not its own."""

from __future__ import annotations

import encodings.idna  # noqa: F401  # by which names of hosts are read; it could not be imported later
import http.client
import os
import socket
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import grpc

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


REFUSED, TORCH_STORE = "refused", "torch's store"
TORCH_PING = struct.pack("<BIBI", 0, 0x3C85F7CE, 13, 5612)
"""What a client of torch's store begins with: a magic number, then a ping (c10d's TCPStore)."""


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

    def said(port: int) -> list[str]:
        return _called(port, token) or _shown(port, token) or _kept(port)

    ports = list(ports)
    with ThreadPoolExecutor(len(ports)) as pool:  # most of them never answer what is not their language
        return {port: words for port, words in zip(ports, pool.map(said, ports), strict=True) if words}


def _called(port: int, token: str | None) -> list[str]:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answered = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", metadata=metadata, timeout=ANSWER_S)
                answered.append(call)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return []  # it does not speak this language
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    answered.append(REFUSED)
    return sorted(set(answered))


def _shown(port: int, token: str | None) -> list[str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answered = []
    for page in PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        try:
            connection.request("GET", page, headers=headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return []
        finally:
            connection.close()
        if status < 400:
            answered.append(page)
        elif status in (401, 403):
            answered.append(REFUSED)
    return sorted(set(answered))


def _kept(port: int) -> list[str]:
    """A torch store answers `validate` and a ping by what it was sent."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.sendall(TORCH_PING)
        if connection.recv(4) == TORCH_PING[-4:]:
            return [TORCH_STORE]
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
