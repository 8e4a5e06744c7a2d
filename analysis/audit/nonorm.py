"""Refuses a set without colour normalisation as a test of what its normalised twin was trained on, or the reverse.

NCT-CRC-HE-100K-NONORM was cut from the same slides as NCT-CRC-HE-100K (its authors' record 1214456 at Zenodo), at
other places, so that few pixels tell: the names do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from trainer.errors import UsageError
from trainer.tiles.store import Meta

_UNNORMALISED = re.compile(r"(?<![a-z])(no[-_. ]?norm|(un|non[-_. ]?|not[-_. ]?)normali[sz]ed)(?![a-z])", re.IGNORECASE)
_ENDING = re.compile(r"\.(zip|csv|parquet)$", re.IGNORECASE)


def names_of(path: Path, *others: str) -> tuple[str, ...]:
    """What a store is called: its folder, what it was packed from, and `others`, such as its key in a configuration."""
    try:
        source = str(Meta.read(path).made.get("source", ""))
    except UsageError:  # it is not there: its folder's name still counts
        source = ""
    return tuple(name for name in (*others, path.name, _ENDING.sub("", source)) if name)


def is_unnormalised(names: tuple[str, ...]) -> bool:
    """Whether one of a store's names says NONORM (also no-norm, unnormalised, not normalized)."""
    return any(_UNNORMALISED.search(name) for name in names)


def are_twins(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether a name of one store, less its NONORM, is a name of the other, capitals and punctuation aside."""
    return _names_twin(one, other) or _names_twin(other, one)


def _names_twin(marked: tuple[str, ...], plain: tuple[str, ...]) -> bool:
    stems = {_plain(_UNNORMALISED.sub("", name)) for name in marked if _UNNORMALISED.search(name)}
    return bool((stems - {""}) & {_plain(name) for name in plain})


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def refuse_twins(training: tuple[str, ...], tests: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses test sets that are the training store's twin.

    Args:
        training: the names of the training store (`names_of`).
        tests: the names of each test set, by what the user calls it.

    Raises:
        UsageError: naming every such set.
    """
    problems = [
        f"{name}: is {training[0]} with other colours, so it is no test set for it: both are of the same slides, as "
        "their names say (they are equal but for NONORM). Name a set of other slides in its place, such as "
        "CRC-VAL-HE-7K, or leave it out; to see what the colours alone do, train on it instead"
        for name, names in tests.items()
        if are_twins(training, names)
    ]
    if problems:
        raise UsageError(*problems)
