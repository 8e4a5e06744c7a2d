"""What a page is to have, beside what it always has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from analysis.map_kinds import MapKind


@dataclass(frozen=True)
class Asked:
    """Whoever asks for nothing gets what is to be had without reading all tiles, and with few forward passes."""

    patients: Mapping[str, int] = field(default_factory=dict)
    """How many there are in sets of tiles of which nobody has written down whose they are, by set."""
    measured_maps: int | None = 0
    """Tiles of each class whose maps are measured, on the first set. None: some, where maps have enough cells."""
    tiles: tuple[str, ...] = ()
    """Tiles whose maps of every class are to be seen, by tile id or path."""
    maps: MapKind = field(default_factory=MapKind)
    """Which maps are drawn; those that are measured are always `MapKind()`."""
    audit: bool = False
    """Whether all tiles are read for an audit."""
