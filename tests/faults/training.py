"""A training that is long enough to be disturbed: seconds of steps, a checkpoint every other one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.rundir import RunDir

STEPS, EVERY, TIMEOUT_S = 36, 2, 20
OPTIONS: dict[str, object] = {
    "model.unfrozen_depth": 1,
    "augment.input_size": 64,
    "loop.epochs": 6,
    "loop.checkpoint_every": EVERY,
    "scale.workers": 2,
    "scale.timeout_s": TIMEOUT_S,
}


@dataclass(frozen=True)
class Training:
    """A configuration, and the run that comes of it."""

    config: Path
    run: RunDir
