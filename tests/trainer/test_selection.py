"""Which trial is chosen, and how sure that is: against resampling and hand-written sums."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.scores import balanced_accuracy_interval
from trainer.ledger import Record
from trainer.loop import scores
from trainer.selection import Choice, choose, error_of

METRICS = ["val/balanced_accuracy", "val/accuracy", "val/macro_f1", "val/loss"]


def drawn(groups: int, size: int, spread: float) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Tiles of three classes in groups of `size`; whole groups are harder or easier by `spread`."""
    generator = np.random.default_rng(0)
    labels = generator.choice(3, groups * size, p=[0.5, 0.3, 0.2])
    group = np.repeat(np.arange(groups), size)
    ease = 1.0 + spread * np.repeat(generator.normal(size=groups), size)
    logits = generator.normal(size=(groups * size, 3)) + ease[:, None] * np.eye(3)[labels]
    return logits.astype(np.float32), labels, group


def resampled(metric: str, logits: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """The standard deviation of the metric over samples of groups, drawn with replacement."""
    generator = np.random.default_rng(1)
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    found = []
    for _ in range(1000):
        rows = np.concatenate([members[place] for place in generator.integers(len(members), size=len(members))])
        found.append(scores(logits[rows], labels[rows])[metric])
    return float(np.std(found))


@pytest.mark.parametrize("metric", METRICS)
def test_the_error_over_tiles_is_that_of_resampling(metric: str) -> None:
    logits, labels, _ = drawn(groups=400, size=1, spread=0.0)
    alone = resampled(metric, logits, labels, np.arange(len(labels)))
    assert error_of(metric, logits, labels) == pytest.approx(alone, rel=0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_the_error_over_slides_is_that_of_resampling_slides(metric: str) -> None:
    logits, labels, groups = drawn(groups=60, size=20, spread=0.7)
    by_group = error_of(metric, logits, labels, groups)
    assert by_group == pytest.approx(resampled(metric, logits, labels, groups), rel=0.2)
    assert by_group > 1.3 * error_of(metric, logits, labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("slides", [1, 2, 3])
def test_the_error_over_few_slides_is_never_below_that_over_tiles(metric: str, slides: int) -> None:
    """The slides' sums are 0, or nearly so by chance: that tells nothing of other slides."""
    logits, labels, groups = drawn(groups=slides, size=200, spread=0.0)
    over_tiles = error_of(metric, logits, labels)
    assert error_of(metric, logits, labels, groups) >= over_tiles > 0.005
    if slides == 1:
        assert error_of(metric, logits, labels, groups) == over_tiles


@pytest.mark.parametrize("slides", [2, 30])
def test_the_error_of_the_choice_is_that_of_the_table(slides: int) -> None:
    logits, labels, groups = drawn(groups=slides, size=20, spread=0.7)
    interval = balanced_accuracy_interval(labels, logits.argmax(axis=1), groups)
    assert error_of("val/balanced_accuracy", logits, labels, groups) == interval.standard_error


def test_the_error_of_balanced_accuracy_is_the_binomials() -> None:
    """Two classes, 8 of 10 and 15 of 20 right: a quarter of the two variances' sum."""
    labels = np.repeat([0, 1], [10, 20])
    right = np.concatenate([np.arange(10) < 8, np.arange(20) < 15])
    logits = np.where(np.eye(2)[np.where(right, labels, 1 - labels)] == 1, 1.0, 0.0)
    expected = np.sqrt((0.8 * 0.2 / 10 + 0.75 * 0.25 / 20) / 4)
    assert error_of("val/balanced_accuracy", logits, labels) == pytest.approx(expected * np.sqrt(30 / 29))


def record(number: int, depth: int, value: float | None, status: str = "done") -> Record:
    name = f"{number:04d}"
    return Record(name, name, number, 0, {"model.unfrozen_depth": depth}, 3, status=status, value=value)


def chosen(records: list[Record], mode: str = "max", error: float = 0.02) -> Choice | None:
    return choose(records, mode, lambda one: int(one.parameters["model.unfrozen_depth"]), lambda _: error)


def test_the_cheapest_within_one_standard_error_is_chosen() -> None:
    records = [
        record(1, 2, 0.90),
        record(2, 1, 0.885),
        record(3, 0, 0.87),
        record(4, 1, 0.881),
        record(5, 0, 0.95, "stopped"),  # at an early epoch: no candidate
        record(6, 0, None, "diverged"),
        record(7, 0, 0.89, "running"),
    ]
    found = chosen(records)
    assert found is not None
    assert (found.best, found.value, found.within, found.cheapest) == ("0001", 0.90, ("0001", "0002", "0004"), "0002")
    assert (found.of, found.candidates) == (6, 4)


def test_less_is_better_for_a_loss() -> None:
    found = chosen([record(1, 2, 0.50), record(2, 1, 0.515), record(3, 0, 0.53)], "min")
    assert found is not None
    assert (found.best, found.within, found.cheapest) == ("0001", ("0001", "0002"), "0002")


def test_of_equals_the_first_is_best_and_of_none_there_is_no_choice() -> None:
    found = chosen([record(2, 1, 0.9), record(1, 1, 0.9)], error=0.0)
    assert found is not None
    assert (found.best, found.within, found.cheapest) == ("0001", ("0001", "0002"), "0001")
    assert chosen([record(1, 0, 0.9, "stopped"), record(2, 0, None, "failed")]) is None
