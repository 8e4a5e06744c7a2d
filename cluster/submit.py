"""A command as a job of a running Ray cluster: its files there, its log here, its exit code in the end."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.private import environment
from cluster.upload import inspect

FAILED, STOPPED = 1, 128 + signal.SIGTERM
POLL_S = 1.0
UNREACHABLE_S = 120.0
TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class SubmitError(Exception):
    """A cluster that does not take the job, or no longer answers."""


def submit(address: str, directory: Path, command: Sequence[str]) -> int:
    """Uploads a directory, runs a command in it as a Ray job, and prints the job's log until it ends.

    INT or TERM to this program ends the printing, not the job.

    Args:
        address: the cluster's dashboard, http://HOST:PORT.
        directory: the working directory to upload.
        command: the program to run and its arguments.

    Returns:
        The exit code of the command; 143 where the job was stopped; 1 where it could not be started.

    Raises:
        UploadError: where the directory must not be uploaded.
        SubmitError: where the cluster refuses this user, or cannot be reached.
    """
    job = f"tissuegrid-{secrets.token_hex(6)}"
    # First of all: Ray looks at its variables once, when it is imported.
    with environment(_client_environment(address)):
        upload = inspect(directory)
        _say(f"uploading {upload}, from {upload.root}, for job {job}")
        with _ray_errors(address), _detaching(address, job):
            client = _client(address)
            # The driver only directs: a GPU for it would be taken away from those who train.
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=job,
                runtime_env={"working_dir": str(upload.root)},
                entrypoint_num_gpus=0,
            )
            _say(f"job {job} is submitted; INT (Ctrl-C) leaves it running")
            return _exit_code(_follow(client, job))


def _client_environment(address: str) -> dict[str, str | None]:
    """Ray takes the address from here, whatever else it is told, and the token where authentication is on."""
    has_token = any(os.environ.get(name) for name in TOKEN_SOURCES) or Path("~/.ray/auth_token").expanduser().exists()
    mode = os.environ.get("RAY_AUTH_MODE") or ("token" if has_token else None)
    return {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_MODE": mode}


def _client(address: str) -> Any:
    import logging

    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the size has been told, and the rest is in the job's log
    return JobSubmissionClient(address)


def _follow(client: Any, job: str) -> Any:
    """Prints a job's log until the job ends, also over broken connections; what Ray knows of its end."""
    printed, heard_at = 0, time.monotonic()
    while True:
        try:
            printed = asyncio.run(_print_log(client, job, printed))
            details = client.get_job_info(job)
            heard_at = time.monotonic()
            if details.status.is_terminal():
                return details
        except OSError:  # as all errors of requests are
            if time.monotonic() - heard_at > UNREACHABLE_S:
                raise
        time.sleep(POLL_S)


async def _print_log(client: Any, job: str, printed: int) -> int:
    """Prints what comes after the first `printed` characters, until the connection ends; how much it is now."""
    import aiohttp

    position = 0
    with suppress(RuntimeError, aiohttp.ClientError):  # the connection has broken off, or could not be made
        async for text in client.tail_job_logs(job):
            sys.stdout.write(text[max(0, printed - position) :])
            sys.stdout.flush()
            position += len(text)
    return max(printed, position)


def _exit_code(details: Any) -> int:
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        _say("the job was stopped")
        return STOPPED
    if (code := details.driver_exit_code) is None:
        _say(f"the command did not run to its end: {details.message}")
        return FAILED
    return int(code) if code >= 0 else 128 - int(code)


@contextmanager
def _detaching(address: str, job: str) -> Iterator[None]:
    """While the context lasts, INT and TERM end this program and say how to go on with the job."""

    def leave(number: int, _: FrameType | None) -> None:
        _say(f"job {job} goes on without this program")
        for verb in ("logs --follow", "stop"):
            _say(f"  ray job {verb} --address {address} {job}")
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray_errors(address: str) -> Iterator[None]:
    """Ray's and its connections' errors, each as one message that names the remedy."""
    try:
        yield
    except Exception as error:
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            reason = error.message.partition("\n")[0]
            raise SubmitError(
                f"{address}: {reason}; put the cluster's token into a file that only you can read, and name the file "
                "in RAY_AUTH_TOKEN_PATH"
            ) from None
        if isinstance(error, OSError):
            raise SubmitError(
                f"{address}: does not answer ({error}); name the cluster's dashboard, such as http://127.0.0.1:8265, "
                "or an ssh or kubectl tunnel to it"
            ) from None
        if isinstance(error, RuntimeError):
            raise SubmitError(f"{address}: {error}") from None
        raise


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)
