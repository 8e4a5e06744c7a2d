import pytest

from tests.conftest import MakeConfig
from trainer.config import ScaleSection
from trainer.errors import UsageError
from trainer.plan import make_plan
from trainer.scale import Machine, resolve

TWO_CORES = Machine(((2, 0),), cluster=False)


@pytest.mark.parametrize(("workers", "cores"), [(1, 3), (2, 2), (2, 40), ("1:2", 2)])
def test_more_cores_than_there_are_are_refused(workers: int | str, cores: int) -> None:
    with pytest.raises(UsageError, match=r"scale.cpus_per_worker: .* this process may use 2; lower"):
        resolve(ScaleSection(workers=workers, cpus_per_worker=cores, gpu=False), TWO_CORES)


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, 2, 2), (2, 1, 1), (5, 1, 1), (5, "auto", 1), (1, "auto", 2)]
)
def test_workers_of_one_core_may_share(workers: int, cores: int | str, threads: int) -> None:
    asked = ScaleSection(workers=workers, cpus_per_worker=cores, gpu=False)  # type: ignore[arg-type]
    assert resolve(asked, TWO_CORES).threads == threads


@pytest.mark.parametrize(("have", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_that_of_the_workers_not_of_the_driver(
    make_config: MakeConfig, have: bool, precision: str
) -> None:
    elsewhere = Machine(((8, 1), (8, 1)), cluster=True, gpus_have_bf16=lambda: have)
    config = make_config(**{"scale.gpu": "auto", "scale.cpus_per_worker": "auto", "loop.precision": "auto"})
    plan, _, _ = make_plan(config, elsewhere)
    assert (plan.scale.gpu, plan.precision) == (True, precision)


@pytest.mark.parametrize(
    ("each", "asked", "expected"),
    [
        (((8, 7), (8, 1)), {}, (8, 1)),
        (((16, 3), (16, 3)), {"gpus_per_worker": 2}, (2, 16)),
        (((2, 0), (32, 4)), {"gpu": True}, (4, 8)),  # a head without GPUs does not count
        (((4, 0), (4, 0)), {"workers": 3}, (3, 2)),
    ],
)
def test_on_uneven_nodes_each_worker_has_its_place(
    each: tuple[tuple[int, int], ...], asked: dict[str, object], expected: tuple[int, int]
) -> None:
    scale = resolve(ScaleSection.model_validate(asked), Machine(each, cluster=True))
    assert (scale.workers, scale.threads) == expected


def test_what_fits_on_no_node_is_refused() -> None:
    with pytest.raises(UsageError, match="3 workers of 4 cores and 1 GPUs do not fit"):
        resolve(ScaleSection(workers=3, cpus_per_worker=4), Machine(((8, 1), (4, 2)), cluster=True))
