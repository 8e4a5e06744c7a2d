"""How far a run is, and the weights that it has come to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.command import wait_until
from tests.processes import LIMIT_S, train_killed_at
from trainer.checkpoint import listed
from trainer.config import load_config
from trainer.plan import make_plan, write_run
from trainer.rundir import RunDir
from trainer.scale import this_machine


def wait_for_step(run: RunDir, attempt: int, step: int) -> float:
    """Until this attempt, or a later one, has committed this step, or a later one; the seconds that it took."""
    reached = f"attempt {attempt} at step {step}"
    return wait_until(lambda: any(c.attempt >= attempt and c.step >= step for c in listed(run)), reached)


def weights(run: RunDir, step: int | None = None) -> str:
    """A digest of the weights after the newest step, which is this one, if given."""
    newest = listed(run)[0]
    assert step in (None, newest.step)
    return hashlib.sha256((newest.path / "trained.safetensors").read_bytes()).hexdigest()


def trained_alone(config: Path, limit_s: float = LIMIT_S) -> RunDir:
    """A run of this configuration that nobody disturbs, without Ray, to its end."""
    plan, data, base = make_plan(load_config(config), this_machine())
    write_run(plan, data, base)
    outcome = train_killed_at(plan, None, limit_s)
    assert outcome is not None
    assert outcome.status == "done"
    return plan.run
