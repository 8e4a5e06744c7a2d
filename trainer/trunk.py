"""One trunk, many heads: which trials of a search train together.

Where nothing but the head learns, the trunk makes the same features of a batch in every trial that has the same tiles,
draws and batches. So one forward pass of the trunk is enough for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from trainer.config import SearchSection
from trainer.space import Parameters

T = TypeVar("T")
HEAD_OPTIONS = "optim."
"""What acts on the head alone. All else either changes what the trunk is given, or how long or in what parts a run
trains (loop), which trials that train together have in common."""


def shares_trunk(search: SearchSection) -> bool:
    """Whether trials may train together: none is proposed, or stopped, for what others have reached."""
    apart = search.searcher == "optuna" or search.scheduler != "none"
    return not apart if search.share_trunk == "auto" else search.share_trunk


def trunk_of(parameters: Parameters, depth: int) -> str | None:
    """What trials have in common that can train together; None for a trial whose trunk is its own, since it learns."""
    if depth > 0:
        return None
    common = {key: value for key, value in parameters.items() if not key.startswith(HEAD_OPTIONS)}
    return json.dumps(common, sort_keys=True)


def together(trials: Iterable[T], trunk: Callable[[T], Hashable | None]) -> list[list[T]]:
    """The trials of one trunk together, those without one (None) alone, by the first of each."""
    groups: dict[Hashable, list[T]] = {}
    for number, trial in enumerate(trials):
        shared = trunk(trial)
        groups.setdefault(("alone", number) if shared is None else ("shared", shared), []).append(trial)
    return list(groups.values())
