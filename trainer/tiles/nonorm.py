"""Tells a set without colour normalisation from its normalised twin, which it is no test for, or the reverse.

NCT-CRC-HE-100K-NONORM was cut from the same slides as NCT-CRC-HE-100K (its authors' record 1214456 at Zenodo), at
other places, so that few pixels tell: the names do.
"""

from __future__ import annotations

import re
from pathlib import Path

from trainer.errors import UsageError
from trainer.tiles.meta import Meta

_UNNORMALISED = re.compile(r"(?<![a-z])(no[-_. ]?norm|(un|non[-_. ]?|not[-_. ]?)normali[sz]ed)(?![a-z])", re.IGNORECASE)
_ENDING = re.compile(r"\.(zip|csv|parquet)$", re.IGNORECASE)


def names_of(path: Path, *others: str) -> tuple[str, ...]:
    """What tiles are called: their folder or file, what a store was packed from, and `others`, such as a key in a
    configuration."""
    try:
        source = str(Meta.read(path).made.get("source", ""))
    except UsageError:  # it is not there, or no store: its own name still counts
        source = ""
    return tuple(_ENDING.sub("", name) for name in (*others, path.name, source) if name)


def is_unnormalised(names: tuple[str, ...]) -> bool:
    """Whether one of the names says NONORM (also no-norm, unnormalised, not normalized)."""
    return any(_UNNORMALISED.search(name) for name in names)


def are_twins(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether a name of one, less its NONORM, is a name of the other, capitals and punctuation aside."""
    return _names_twin(one, other) or _names_twin(other, one)


def _names_twin(marked: tuple[str, ...], plain: tuple[str, ...]) -> bool:
    stems = {_plain(_UNNORMALISED.sub("", name)) for name in marked if _UNNORMALISED.search(name)}
    return bool((stems - {""}) & {_plain(name) for name in plain})


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def as_twin(training: Path, test: Path, *called: str) -> str | None:
    """Why tiles are no test of what was trained on others, in a sentence; None where they are not their twin.

    Args:
        training: the store that is learned from.
        test: the other tiles, a store or not.
        called: what else these are called, such as their key in `data.external`.
    """
    if not are_twins(names_of(training), names_of(test, *called)):
        return None
    return (
        f"{test} is {training} with other colours, so it is no test set for it: both are of the same slides, as their "
        "names say (they are equal but for NONORM)"
    )


def refuse_twin(training: Path, test: Path, *called: str) -> None:
    """Refuses a test set that is the training store's twin.

    Args:
        training: as of `as_twin`.
        test: the same.
        called: the same.

    Raises:
        UsageError: naming both, and what to do.
    """
    if problem := as_twin(training, test, *called):
        raise UsageError(
            f"{problem}. Name a set of other slides in its place, such as CRC-VAL-HE-7K, or leave it out; to see what "
            "the colours alone do, train on it instead"
        )
