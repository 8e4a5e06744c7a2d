"""Whether a run or a search is the one that it says: what it comes from, as a digest and a name, and what differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UsageError
from trainer.rundir import Json, Workplace


def digest(content: Json) -> str:
    """SHA-256 of JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def derived_name(tiles: Path, what: str, content: Json) -> str:
    """A name for what has none: of the tiles, of what is done with them, and of all that it comes from."""
    stem = re.sub("[^A-Za-z0-9._-]", "-", tiles.name)[:60].lstrip("._-") or "tiles"
    return f"{stem}-{what}-{digest(content)[:8]}"


def check_same(place: Workplace, known: Json, mine: Json, defaults: Json) -> None:
    """Refuses to go on with what is another one.

    Args:
        place: the run, or the search.
        known: its identity when it began, by dotted key. What it does not know of was added since, and left at its
            default.
        mine: the identity that it would have now.
        defaults: of the identity.

    Raises:
        UsageError: naming what differs.
    """
    mine = json.loads(json.dumps(mine))
    before = {key: known.get(key, defaults.get(key)) for key in {**known, **mine}}
    if changed := [key for key in before if before[key] != mine.get(key)]:
        lines = [line for key in changed for line in _difference(key, before[key], mine.get(key))]
        raise UsageError(
            f"{place} in {place.path.parent} is another {place.KIND}:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\ngive this one another --run.name, or move the old one aside with --fresh"
        )


def _difference(key: str, before: Any, after: Any) -> list[str]:
    """What changed in an option; entry by entry, where it has entries."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return [f"{key}: was {before}, is {after}"]
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [
        f"{key}: {name}: was {before.get(name, 'not there')}, is {after.get(name, 'not there')}" for name in changed
    ]
