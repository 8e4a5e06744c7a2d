"""The batch job that this program runs in, as whoever started it says in the environment."""

from __future__ import annotations

import os


def job_id() -> str | None:
    """The same after a requeue; None outside of a batch job."""
    return os.environ.get("TISSUEGRID_JOB")


def is_requeued_from(job: object) -> bool:
    """Whether this is a later start of this very job."""
    return job_id() is not None and job_restarts() > 0 and job == job_id()


def job_restarts() -> int:
    """How often the job has been requeued."""
    return int(os.environ.get("TISSUEGRID_JOB_RESTARTS", "0"))
