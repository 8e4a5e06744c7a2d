"""Stands between a program and an object store, and spoils what passes: errors, cuts, delays, silence."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "transfer-encoding", "keep-alive"}
"""Headers between two neighbours, which are not passed on."""
ERROR = "<Error><Code>{0}</Code><Message>{0}</Message></Error>"


class Request(BaseHTTPRequestHandler):
    """One request of the program's, which may be spoilt."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        self.server.count += 1
        if self.server.spoil is None or not self.server.spoil(self):
            self.pass_on()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def pass_on(self) -> None:
        store = http.client.HTTPConnection("127.0.0.1", self.server.store_port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {*HOP, "expect"}}
        store.request(self.command, self.path, self.body(), headers)
        answer = store.getresponse()
        content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {*HOP, "content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.reply(content, length)
        store.close()

    def reply(self, content: bytes, length: str) -> None:
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self, share: float = 1.0) -> bytes:
        """What the program sends, or a first part of it."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(share * int(self.headers.get("Content-Length", 0))))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(int(share * size)))
            if share < 1.0:
                break
            self.rfile.readline()
        else:
            while self.rfile.readline().strip():
                pass
        return b"".join(chunks)

    def log_message(self, *_: object) -> None:
        pass


Spoil = Callable[[Request], bool]
"""Deals with a request, and says whether it has."""


class Proxy(ThreadingHTTPServer):
    """A store's door."""

    daemon_threads = True

    def __init__(self, store_port: int):
        super().__init__(("127.0.0.1", 0), Request)
        self.store_port = store_port
        self.spoil: Spoil | None = None
        self.count = 0
        """Requests so far."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def uri(self, place: str) -> str:
        return f"s3://{place}?endpoint_override=127.0.0.1:{self.server_port}&scheme=http"

    def handle_error(self, request: object, client_address: object) -> None:
        """A program that is killed breaks its connections off."""


def refuse(status: int, code: str, request: Request) -> bool:
    """An error of the store's."""
    request.body()
    content = ERROR.format(code).encode()
    request.send_response_only(status)
    request.send_header("Content-Type", "application/xml")
    request.reply(content, str(len(content)))
    return True


def cut(request: Request) -> bool:
    """The connection breaks off, in the middle of what the program sends."""
    request.body(share=0.5)
    request.close_connection = True
    return True


def delay(seconds: float, request: Request) -> bool:  # noqa: ARG001
    time.sleep(seconds)
    return False


def be_silent(until: threading.Event, request: Request) -> bool:
    until.wait()
    return cut(request)


def at_times(spoil: Spoil, each: int, request: Request) -> bool:
    """Only each so many-th request is spoilt."""
    return request.server.count % each == 0 and spoil(request)


unavailable = partial(refuse, 500, "InternalError")
expired = partial(refuse, 403, "ExpiredToken")
