"""How a set of tiles was parted from the training tiles: the words that stand beside every number from it."""

from __future__ import annotations

TILE_LEVEL = "tile-level split"
KINDS = {
    "group": "group-level split",  # by slide or patient
    "source": "source's own split",
    "random": TILE_LEVEL,
}
"""By `data.split`."""
EXTERNAL = "external set"
UNKNOWN = "unknown split"  # of predictions that came without their run
UNLABELLED = "class unknown"
"""What stands in the place of a class for tiles without a label."""
