"""What a check has found on a node."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["pass", "warn", "fail"]
Unit = Literal["", "s", "B", "B/s"]


@dataclass(frozen=True)
class Amount:
    """A number that differs from node to node: many nodes' findings are one line with a range."""

    value: float
    unit: Unit = ""

    def __str__(self) -> str:
        if math.isinf(self.value):
            return "unlimited"
        if self.unit == "":
            return f"{self.value:,.0f}" if self.value < 1e6 else f"{self.value / 1e6:,.3g} million"
        if self.unit == "s":
            return f"{self.value * 1e3:.2g} ms" if round(self.value, 2) < 0.1 else f"{self.value:,.2f} s"
        power = min(4, max(0, int(f"{self.value:.2e}".partition("e")[2]) // 3))
        return f"{self.value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{self.unit}"


Found = tuple[str | Amount, ...]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one node. `remedy` is empty where it passes."""

    check: str
    level: Level
    found: Found
    remedy: str = ""
    node: str = ""

    @property
    def text(self) -> str:
        """What was found, in words."""
        return "".join(map(str, self.found))

    @property
    def word(self) -> dict[str, Any]:
        """As JSON, from which `from_word` makes it again."""
        return asdict(self)


def from_word(word: dict[str, Any]) -> Finding:
    """The finding that another node has sent."""
    found = tuple(part if isinstance(part, str) else Amount(**part) for part in word["found"])
    return Finding(**{**word, "found": found})


def passed(check: str, *found: str | Amount) -> Finding:
    """All is well."""
    return Finding(check, "pass", found)


def warned(check: str, remedy: str, *found: str | Amount) -> Finding:
    """It may work; what would make it better."""
    return Finding(check, "warn", found, remedy)


def failed(check: str, remedy: str, *found: str | Amount) -> Finding:
    """It will not work; what would make it."""
    return Finding(check, "fail", found, remedy)
