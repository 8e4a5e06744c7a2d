"""A small training over the nodes of a Slurm cluster, as the tests start and watch it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.conftest import write_config
from tests.processes import train_killed_at
from tests.slurm.cluster import Job, Slurm
from trainer.checkpoint import listed
from trainer.config import load_config
from trainer.plan import make_plan, write_run
from trainer.rundir import RunDir
from trainer.scale import this_machine

STEPS = 18
OPTIONS: dict[str, object] = {
    "model.unfrozen_depth": 1,
    "loop.epochs": 3,
    "loop.checkpoint_every": 1,
    "scale.workers": 2,
    "augment.input_size": 64,
}


def make_config(stores: tuple[Path, Path], folder: Path, name: str, **options: object) -> tuple[Path, RunDir]:
    """A configuration in `folder`, by dotted key, and its run; dots are written as double underscores."""
    given = {**OPTIONS, "run.name": name, **{key.replace("__", "."): value for key, value in options.items()}}
    return write_config(folder / f"{name}.yaml", stores, folder / "runs", given), RunDir(folder / "runs" / name)


def train(
    slurm: Slurm, config: Path, *flags: str, nodes: int = 2, options: tuple[str, ...] = (), script: str = "train.sh"
) -> Job:
    """Submits `slurm/train.sh`, or another script, over nodes of two CPUs each."""
    given = ("-N", str(nodes), "--gpus-per-node=0", "-c", "2", *options, f"slurm/{script}", str(config), *flags)
    return slurm.submit(*given, output=config.with_suffix(".out"))


def has_step(run: RunDir, attempt: int, step: int) -> bool:
    """Whether this attempt, or a later one, has committed this step, or a later one."""
    return any(c.attempt >= attempt and c.step >= step for c in listed(run))


def weights(run: RunDir) -> str:
    """A digest of the weights after the last step."""
    newest = listed(run)[0]
    assert newest.step == STEPS
    return hashlib.sha256((newest.path / "trained.safetensors").read_bytes()).hexdigest()


def weights_of_one_machine(config: Path) -> str:
    """The same for a run of this configuration that is left alone, on this machine, without Ray."""
    plan, data, base = make_plan(load_config(config), this_machine())
    write_run(plan, data, base)
    outcome = train_killed_at(plan, None)
    assert outcome is not None
    assert outcome.status == "done"
    return weights(plan.run)
