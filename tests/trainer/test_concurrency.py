"""How many trials run at once: as many as fit, and never more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.concurrency import concurrency
from trainer.config import ScaleSection
from trainer.errors import UsageError
from trainer.scale import Machine


@pytest.fixture(autouse=True)
def _no_gpu_was_granted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def settle(each: tuple[tuple[int, int], ...], trials: int = 16, **asked: object) -> tuple[int, int, int]:
    found = concurrency(ScaleSection.model_validate(asked), Machine(each, cluster=True), trials)
    return found.trials, found.scale.workers, found.scale.threads


@pytest.mark.parametrize(
    ("each", "trials", "asked", "expected"),
    [
        (((2, 0),), 16, {}, (2, 1, 1)),
        (((64, 0),), 16, {}, (16, 1, 4)),
        (((64, 0),), 1, {}, (1, 1, 64)),
        (((32, 4), (32, 4)), 16, {}, (8, 1, 8)),
        (((32, 4), (32, 4)), 16, {"gpus_per_worker": 0.25}, (16, 1, 4)),
        (((32, 4), (32, 4)), 100, {"gpus_per_worker": 0.3}, (24, 1, 2)),  # three on each GPU, not 3.33
        (((32, 4), (32, 4)), 16, {"workers": 2}, (4, 2, 8)),
        (((32, 4), (32, 4)), 16, {"workers": 8}, (1, 8, 8)),
        (((32, 4), (32, 4)), 16, {"gpus_per_worker": 2}, (4, 1, 16)),
        (((32, 3),), 16, {"gpus_per_worker": 2}, (1, 1, 32)),
        (((3, 0), (3, 0)), 16, {"workers": 2, "cpus_per_worker": 2}, (1, 2, 2)),  # a core of each node is left over
        (((4, 4),), 16, {"gpu": False}, (4, 1, 1)),
        (((2, 8), (64, 0)), 16, {}, (2, 1, 1)),  # GPUs without cores, cores without GPUs
    ],
)
def test_as_many_as_fit(
    each: tuple[tuple[int, int], ...], trials: int, asked: dict[str, object], expected: tuple[int, int, int]
) -> None:
    assert settle(each, trials, **asked) == expected


@pytest.mark.parametrize(
    ("each", "asked", "words"),
    [
        (((2, 0),), {"workers": 4, "gpu": False}, "not one trial of 4 workers with 1 core each fits"),
        (((2, 0),), {"cpus_per_worker": 3}, "scale.cpus_per_worker"),
        (((8, 1),), {"gpus_per_worker": 2}, "1 GPUs"),
        (((8, 1), (8, 1)), {"gpus_per_worker": 2}, "not one trial"),
        (((8, 1),), {"workers": 2, "gpus_per_worker": 0.5}, "would share a GPU"),
        (((8, 1),), {"workers": "1:4"}, "have a fixed number of workers"),
        (((8, 0),), {"gpu": True}, "no node of the cluster has a GPU"),
    ],
)
def test_what_cannot_fit_is_said_at_once(
    each: tuple[tuple[int, int], ...], asked: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        settle(each, **asked)


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(1, 4),
    st.sampled_from([0.25, 0.3, 0.5, 1, 2]),
)
def test_what_runs_at_once_has_room_for_all(
    nodes: list[tuple[int, int]], trials: int, workers: int, share: float
) -> None:
    """Workers are dealt to nodes one by one, as Ray would: all of the trials find a place."""
    workers = 1 if share < 1 else workers
    try:
        at_once, _, threads = settle(tuple(nodes), trials, workers=workers, gpus_per_worker=share)
    except UsageError:
        return
    on_gpus = any(gpus for _, gpus in nodes)
    places = 0
    for cores, gpus in nodes:
        while cores >= threads and (not on_gpus or gpus >= share):
            cores -= threads
            gpus -= share if share >= 1 else 1 / math.floor(1 / share + 1e-9) - 1e-9
            places += 1
    assert 1 <= at_once <= trials
    assert at_once * workers <= places
