"""A batch job that is requeued again and again, and stopped each time before it has got anywhere."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import RunError
from trainer.job import job_id
from trainer.rundir import read_json, write_json

MAX_FRUITLESS = 3


def check_progress(file: Path, *, advanced: bool) -> None:
    """Ends such a job. `file` keeps how many starts in a row were stopped before they had taken a step.

    Raises:
        RunError: the third time in a row.
    """
    if job_id() is None or advanced:
        file.unlink(missing_ok=True)
        return
    times = 1 + (read_json(file)["times"] if file.exists() else 0)
    write_json(file, {"times": times})
    if times >= MAX_FRUITLESS:
        file.unlink()
        raise RunError(
            f"stopped {times} times in a row before a single step, and would be requeued for ever; give the job more "
            "time (sbatch --time, or a later --signal)"
        )
