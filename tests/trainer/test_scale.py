import pytest

from trainer.config import ScaleSection
from trainer.errors import UsageError
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
