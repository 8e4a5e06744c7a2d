"""A small training over the nodes of a Slurm cluster, as the tests start and watch it."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import write_config
from tests.slurm.cluster import Job, Slurm
from trainer.checkpoint import listed
from trainer.rundir import RunDir

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
