"""How a set of tiles was parted from the training tiles: the words that stand beside every number from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.tiles.nonorm import as_twin

TILE_LEVEL = "tile-level split"
KINDS = {
    "group": "group-level split",  # by slide or patient
    "source": "source's own split",
    "random": TILE_LEVEL,
}
"""By `data.split`."""
EXTERNAL = "external set"
TWIN = "no test: twin of the training tiles"
UNKNOWN = "unknown split"  # of predictions that came without their run
UNLABELLED = "class unknown"
"""What stands in the place of a class for tiles without a label."""


def kind_of(split: str, data: Mapping[str, Any]) -> str:
    """The words for a set of a run or a search, whose `data` is as run.json has it."""
    if split not in data["external"]:
        return KINDS[data["split"]]
    return TWIN if split in twins(data) else EXTERNAL


def twins(data: Mapping[str, Any]) -> dict[str, str]:
    """External sets that are the training tiles in other colours, by name, with why they are no test; `data` alike."""
    training = Path(data["tiles"]["path"])
    found = {name: as_twin(training, Path(store["path"]), name) for name, store in data["external"].items()}
    return {name: why for name, why in found.items() if why}
