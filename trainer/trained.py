"""A trained run, as those see it who use its network: on other tiles, or in another program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.calibration import Calibration
from trainer.checkpoint import MANIFEST, Checkpoint, best_checkpoint
from trainer.config import Config, load_config
from trainer.errors import RunError, UsageError
from trainer.rundir import Json, RunDir, SearchDir, read_json
from trainer.tiles.meta import Meta


@dataclass(frozen=True)
class TrainedRun:
    """A run with a best checkpoint."""

    run: RunDir
    config: Config
    identity: Json
    """run.json's content."""
    checkpoint: Checkpoint
    """The best one, verified."""
    manifest: Json
    """Its manifest's content."""
    best: Json
    """best.json's content."""
    tile_size: tuple[int, int] | None
    """Height and width of the training tiles, px; None where an early version kept it with a store that is gone."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self.identity["classes"])

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the training tiles; None where it is unknown."""
        mpp = self.identity["data"]["tiles"].get("mpp")
        return None if mpp is None else float(mpp)

    @property
    def precision(self) -> str:
        """fp32 or bf16."""
        return str(self.identity.get("precision", "fp32"))

    @property
    def calibration(self) -> Calibration:
        """Temperature and stain, as far as they are there."""
        return Calibration.read(self.best)

    @property
    def epochs(self) -> tuple[int, int]:
        """How many it has been trained for, and for how many it is to be."""
        return len(self.run.read_metrics()), self.config.loop.epochs

    def facts(self) -> dict[str, Any]:
        """What travels with predictions and exported weights, as JSON values."""
        return {
            "run": self.run.name,
            "checkpoint": self.checkpoint.path.name,
            "checkpoint_sha256": self.manifest["sha256"],
            "config_hash": self.manifest.get("config_hash"),
            "data_fingerprint": self.identity["data"]["tiles"]["fingerprint"],
            "temperature": self.calibration.temperature,
        }


def open_trained(path: Path) -> TrainedRun:
    """Opens a run.

    Raises:
        UsageError: where there is none at `path`, or it has no checkpoint.
        RunError: where its files are damaged.
    """
    run = RunDir(path.absolute())
    if SearchDir(run.path).exists():
        finals = [f"{path}/{one.path.relative_to(run.path)}" for one in SearchDir(run.path).finals()]
        raise UsageError(f"{path} is a search; name one of its runs, such as {(finals or [f'{path}/trials/0001'])[0]}")
    if not run.identity_file.is_file():
        raise UsageError(
            f"{path} is not a run directory (it has no {run.identity_file.name}); name one, e.g. runs/NAME"
        )
    if not run.best_file.is_file():
        raise UsageError(f"{path} has no checkpoint of a whole epoch yet; train it first")
    identity = run.read_identity()
    checkpoint = best_checkpoint(run)
    return TrainedRun(
        run,
        load_config(run.config_file),
        identity,
        checkpoint,
        read_json(checkpoint.path / MANIFEST),
        read_json(run.best_file),
        _tile_size(identity),
    )


def _tile_size(identity: Json) -> tuple[int, int] | None:
    known = identity["data"]["tiles"]
    size = known.get("tile_size")
    if size is None:
        try:
            meta = Meta.read(Path(known["path"]))
        except (UsageError, RunError):
            return None
        size = meta.tile_size if meta.fingerprint == known["fingerprint"] else None
    return None if size is None else (int(size[0]), int(size[1]))
