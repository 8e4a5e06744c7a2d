"""Numbers and names as they stand in a sentence."""

from collections.abc import Iterable

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
