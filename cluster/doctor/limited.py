"""Checks within a time limit: what does not answer is a finding, and nothing waits for it any longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cluster.doctor.finding import Finding, failed

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """One thing to look at. `remedy` is for the case that it raises, or does not answer within `limit_s`."""

    name: str
    limit_s: float
    remedy: str
    look: Callable[[], list[Finding]]


class LimitError(Exception):
    """It has not answered within its limit."""


class Later(Generic[T]):
    """A call under way in a thread that nobody has to wait for: a dead file system holds it for ever."""

    def __init__(self, act: Callable[[], T], limit_s: float):
        self._act, self._limit_s = act, limit_s
        self._deadline = time.monotonic() + limit_s
        self._answer: list[T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Its answer or its error; a LimitError where there is neither in time."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        if not self._answer:
            raise LimitError(f"no answer in {self._limit_s:.0f} s")
        return self._answer[0]

    def _run(self) -> None:
        try:
            self._answer.append(self._act())
        except Exception as error:
            self._error = error


def look(checks: Sequence[Check]) -> list[Finding]:
    """What all checks find; they run at once, so that it takes no longer than the longest limit."""
    looks = [Later(check.look, check.limit_s) for check in checks]
    return [finding for check, later in zip(checks, looks, strict=True) for finding in _findings(check, later)]


def _findings(check: Check, later: Later[list[Finding]]) -> list[Finding]:
    try:
        return later.result()
    except Exception as error:
        return [failed(check.name, check.remedy, problem(error))]


def problem(error: Exception) -> str:
    """An error in words: of a file, its name and what the system says."""
    if isinstance(error, LimitError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Ended:
    """How a program ended (`code` is None where it was killed at its limit), and all that it printed."""

    code: int | None
    text: str

    @property
    def last_line(self) -> str:
        """What it said last."""
        return (self.text.strip().splitlines() or ["(it printed nothing)"])[-1]

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object that it printed last, among whatever else."""
        line = next(line for line in reversed(self.text.splitlines()) if line.startswith("{"))
        return dict(json.loads(line))


def program(argv: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a program; it and all of its session are killed at the limit."""
    with tempfile.TemporaryFile("w+b") as output:
        process = subprocess.Popen(
            list(argv),
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(limit_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return Ended(code, output.read().decode(errors="replace"))
