"""Numbers and names as they stand in a sentence."""

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SHOWN = 5


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 file`, `2,000 files`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def joined(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of more than six the first five and `3 more`; of none `nothing`."""
    parts = list(names) or ["nothing"]
    if len(parts) > _SHOWN + 1:
        parts[_SHOWN:] = [f"{len(parts) - _SHOWN:,} more"]
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def visible(text: str) -> str:
    """Text for a terminal, which names of files and classes in it do not steer: their control characters are shown."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
