"""The environment of a task, as Slurm sets it, and what we make of it."""

from __future__ import annotations

import pytest

from cluster.allocation import Allocation, AllocationError, from_slurm, local

TASK = {
    "SLURM_CLUSTER_NAME": "alpha",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURMD_NODENAME": "n2",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def task(**given: str) -> Allocation:
    """The allocation of such a task, with some variables set otherwise."""
    found = from_slurm({**TASK, **given})
    assert found is not None
    return found


def test_a_task_knows_its_node_and_what_it_may_use() -> None:
    found = task()
    assert (found.job, found.start, found.rank, found.nodes, found.node) == ("alpha-4711", "alpha-4711-0-0", 1, 2, "n2")
    assert (found.cpus, found.gpus, found.memory, found.peer) == (8, 0, None, "10.0.0.1")


def test_no_two_starts_have_one_name() -> None:
    others = [{"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "47"}, {"SLURM_CLUSTER_NAME": "b"}]
    starts = [task(**other).start for other in [{}, *others]]
    assert len(set(starts)) == len(others) + 1


def test_a_requeued_job_knows_its_earlier_starts() -> None:
    first, second, third = (task(SLURM_RESTART_COUNT=number) for number in "012")
    assert not first.earlier_starts
    assert third.earlier_starts == [first.start, second.start]


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0),
    ],
)
def test_gpus_are_those_granted(given: dict[str, str], gpus: int) -> None:
    assert task(**given).gpus == gpus


@pytest.mark.parametrize(
    ("given", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2 * 1024**3),
        ({"SLURM_MEM_PER_CPU": "512"}, 8 * 512 * 1024**2),
        ({"SLURM_MEM_PER_GPU": "4096", "SLURM_GPUS_ON_NODE": "2"}, 8 * 1024**3),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
    ],
)
def test_memory_is_that_allocated(given: dict[str, str], memory: int | None) -> None:
    assert task(**given).memory == memory


def test_without_one_task_a_node_the_remedy_is_named() -> None:
    with pytest.raises(AllocationError, match=r"srun started 4 tasks on 2 nodes.*--ntasks-per-node=1"):
        from_slurm({**TASK, "SLURM_STEP_NUM_TASKS": "4"})
    with pytest.raises(AllocationError, match="not started by srun"):
        from_slurm({"SLURM_JOB_ID": "4711"})
    with pytest.raises(AllocationError, match="SLURM_STEP_ID is not set"):
        from_slurm({name: value for name, value in TASK.items() if name != "SLURM_STEP_ID"})


def test_outside_of_slurm_there_is_none() -> None:
    assert from_slurm({}) is None


def test_pretended_nodes_share_the_cores() -> None:
    one, two = local("x", 0, 1), local("x", 1, 2)
    assert one.cpus >= two.cpus >= 1
    assert two.node == "local1"
