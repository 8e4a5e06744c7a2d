"""A real object store on loopback, and what a mirror in it should hold."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import boto3

from trainer.rundir import RunDir


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def local(run: RunDir) -> dict[str, bytes]:
    """What a mirror should hold: all of a storage root but the lock."""
    return {name: data for name, data in contents(run.storage).items() if not name.endswith("lock.json")}
