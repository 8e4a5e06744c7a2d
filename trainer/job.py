"""The batch job that this program runs in, as whoever started it says in the environment."""

from __future__ import annotations

import os


def job_id() -> str | None:
    """The same after a requeue; None outside of a batch job."""
    return os.environ.get("TISSUEGRID_JOB")


def job_restarts() -> int:
    """How often the job has been requeued."""
    return int(os.environ.get("TISSUEGRID_JOB_RESTARTS", "0"))
