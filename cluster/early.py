"""Batch jobs that are stopped again and again before their command has begun."""

from __future__ import annotations

from pathlib import Path

from cluster.allocation import Allocation
from cluster.rendezvous import EARLY

MOST = 3


class EarlyStops:
    """How often in a row this has happened to a job; kept in the shared folder, since its starts know no other."""

    def __init__(self, shared: Path, allocation: Allocation):
        self._file = shared / f"{allocation.job}{EARLY}"
        self._counts = not allocation.pretended

    def too_many(self) -> bool:
        """Notes one more; whether it is time to give up, since a requeue would only bring the next."""
        if not self._counts:
            return False
        times = 1 + (int(self._file.read_text()) if self._file.exists() else 0)
        if times >= MOST:
            self.forget()
            return True
        self._file.write_text(str(times))
        return False

    def forget(self) -> None:
        """The command has begun."""
        self._file.unlink(missing_ok=True)
