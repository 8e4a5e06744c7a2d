"""What training's last act adds to `best.json`, for those who use the checkpoint on other tiles.

`temperature` is fitted on the validation tiles (`trainer/temperature.py`); `stain` says how the training tiles are
stained (`trainer/tiles/stain.py`). They follow from the checkpoint and from nothing else, so an attempt that comes to
its end again writes them again. Runs that ended before there were these have neither, until they are started once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.predictions import read_predictions
from trainer.rundir import Json, RunDir, read_json, write_json
from trainer.temperature import fit_temperature
from trainer.tiles.loader import TileSet
from trainer.tiles.stain import Stain, measure, sample, summarise


@dataclass(frozen=True)
class Calibration:
    """What `best.json` holds of it; None where the run has not come to its end, or did before this was kept."""

    temperature: float | None
    stain: Stain | None

    @classmethod
    def read(cls, best: Json) -> Calibration:
        """Of `best.json`'s content."""
        stain = best.get("stain")
        return cls(best.get("temperature"), None if stain is None else Stain.from_json(stain))

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing left to add."""
        return self.temperature is not None and self.stain is not None


def stain_of(tiles: TileSet) -> Stain:
    """The stain of a sample of tiles, always the same one."""
    return summarise(measure(tiles.tiles, sample(tiles.rows)))


def calibrate(run: RunDir, stain: Stain) -> None:
    """Adds to `best.json` the temperature that the best checkpoint's predictions on validation ask for, and a stain."""
    val = read_predictions(run.predictions_file("val"))
    temperature = fit_temperature(val.logits, val.labels)
    write_json(run.best_file, {**read_json(run.best_file), "temperature": temperature, "stain": stain.to_json()})
