"""The searched fields: what they are called, how their values are written, where they stand on an axis."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.rundir import Json

SETS = ("choice", "grid")
LOGARITHMIC = ("loguniform", "qloguniform")
WHOLE = ("randint", "qrandint")
FEW = 10
"""Up to so many values a field may part trials into groups, each with a colour of its own."""
WIDE = 20
"""Numbers that are further apart than this factor stand on a logarithmic axis."""
MOST_DIGITS = 4
Scale = Literal["log", "linear", "categories"]


@dataclass(frozen=True)
class Field:
    """One option that a search varies."""

    key: str
    """Dotted, as in the configuration."""
    name: str
    """The shortest that means nothing else."""
    scale: Scale
    values: tuple[Any, ...]
    """What it may be, in order; empty for an interval."""
    ends: tuple[float, float]
    """Lowest and highest position on the axis."""
    digits: int
    """Significant digits of numbers that are not whole."""

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ")

    def text(self, value: object) -> str:
        """A value as a person reads it."""
        if isinstance(value, bool) or value is None:
            return json.dumps(value)
        if isinstance(value, float):
            return f"{value:.{self.digits - 1}e}" if self.scale == "log" else f"{value:.{self.digits + 1}g}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def position(self, value: Any) -> float:
        """Where a value stands on the axis; NaN where it has no place."""
        if self.values and value not in self.values:
            return math.nan
        if self.scale == "categories":
            return float(self.values.index(value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return math.nan
        if self.scale == "linear":
            return float(value)
        return math.log10(value) if value > 0 else math.nan


def fields(space: Mapping[str, Json], taken: Collection[str] = ()) -> list[Field]:
    """The fields of a space, by dotted key; `taken` are names that mean something else where these stand."""
    return [_field(key, _name(key, space, taken), values) for key, values in space.items()]


def _name(key: str, space: Mapping[str, Json], taken: Collection[str]) -> str:
    parts = key.split(".")
    ends = [".".join(parts[place:]) for place in reversed(range(len(parts)))]
    others = [f".{other}" for other in space if other != key]
    free = [end for end in ends if end not in taken and not any(other.endswith(f".{end}") for other in others)]
    return free[0] if free else key


def _field(key: str, name: str, written: Json) -> Field:
    [(form, content)] = written.items()
    if form not in SETS:
        low, high = content[:2]
        scale: Scale = "log" if form in LOGARITHMIC else "linear"
        few = form in WHOLE and high - low < FEW and float(low).is_integer()
        values = tuple(range(int(low), int(high) + 1)) if few else ()
        return _placed(key, name, scale, values, (low, high))
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in content):
        return _placed(key, name, "categories", tuple(content), (0, len(content) - 1))
    values = tuple(sorted(set(content)))
    spread = values[0] > 0 and values[-1] / values[0] >= WIDE
    return _placed(key, name, "log" if spread else "linear", values, (values[0], values[-1]))


def _placed(key: str, name: str, scale: Scale, values: tuple[Any, ...], ends: Sequence[float]) -> Field:
    low, high = (math.log10(end) if scale == "log" else float(end) for end in ends)
    return Field(key, name, scale, values, (low, high), _digits(key, name, scale, values))


def _digits(key: str, name: str, scale: Scale, values: tuple[Any, ...]) -> int:
    """As few as tell the given values apart; two for an interval."""
    for digits in range(2, MOST_DIGITS):
        field = Field(key, name, scale, values, (0, 0), digits)
        if len({field.text(value) for value in values}) == len({str(value) for value in values}):
            return digits
    return MOST_DIGITS
