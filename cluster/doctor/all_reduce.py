"""A small all-reduce over all ranks, as training does with its gradients, and its bandwidth.

`python -m cluster.doctor.all_reduce GROUP RANK DEVICE` is one rank of a group that is given as JSON: a program of its
own, because a network that lets nothing through holds whoever waits for it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from cluster.doctor.finding import Amount, Finding, failed, passed, warned
from cluster.doctor.limited import Ended, program

BYTES = {"nccl": 256_000_000, "gloo": 16_000_000}
LEAST_BYTES_PER_S = {"nccl": 1e9, "gloo": 5e7}
ROUNDS = 5
START_S = 120.0  # torch may come from slow storage


@dataclass(frozen=True)
class Group:
    """All ranks, where they meet (host:port on the first node), and what they send with."""

    world: int
    meeting: str
    backend: str
    limit_s: float

    @property
    def end_s(self) -> float:
        """Seconds after which a rank is killed, its start included."""
        return START_S + self.limit_s


@dataclass(frozen=True)
class Outcome:
    """What became of a rank: seconds for a round, or what went wrong."""

    seconds: float
    problem: str


def run_rank(group: Group, rank: int, device: int) -> Outcome:
    """Runs one rank."""
    ended = program(
        [sys.executable, "-m", "cluster.doctor.all_reduce", json.dumps(asdict(group)), str(rank), str(device)],
        group.end_s,
    )
    return outcome(ended, group)


def outcome(ended: Ended, group: Group) -> Outcome:
    """What a rank's end means."""
    if ended.code is None:
        return Outcome(0.0, f"not done in {group.end_s:.0f} s")
    if ended.code != 0:
        return Outcome(0.0, ended.last_line)
    return Outcome(float(ended.answer["seconds"]), "")


def judge(group: Group, outcome: Outcome, interface: str) -> Finding:
    """A rank, by the bandwidth between neighbours in a ring: 2 (n-1) / n of the bytes in a round's time."""
    ranks = f"{group.world} ranks by {group.backend}"
    remedy = (
        f"the nodes must reach each other on every port; try, in slurm/site.env: export NCCL_SOCKET_IFNAME={interface} "
        f"GLOO_SOCKET_IFNAME={interface}; with NCCL_DEBUG=INFO, NCCL says more"
    )
    if outcome.problem:
        return failed("all-reduce", remedy, f"{ranks}: {outcome.problem}")
    speed = 2 * (group.world - 1) / group.world * BYTES[group.backend] / outcome.seconds
    sent, seconds = Amount(BYTES[group.backend], "B"), Amount(outcome.seconds, "s")
    found = (f"{ranks}: ", Amount(speed, "B/s"), ", ", sent, " in ", seconds)
    if speed < LEAST_BYTES_PER_S[group.backend]:
        return warned("all-reduce", remedy, *found, ": slow")
    return passed("all-reduce", *found)


def measure(group: Group, rank: int, device: int) -> float:
    """Seconds that a round takes; `device` is a GPU's number on this node, for NCCL.

    Raises:
        ArithmeticError: where the sum over the ranks is wrong.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    place = torch.device("cuda", device) if group.backend == "nccl" else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group(
        group.backend,
        init_method=f"tcp://{group.meeting}",
        rank=rank,
        world_size=group.world,
        timeout=timedelta(seconds=group.limit_s),
    )
    numbers = torch.full((BYTES[group.backend] // 4,), float(rank + 1), device=place)
    dist.all_reduce(numbers)
    if not bool((numbers == group.world * (group.world + 1) / 2).all()):
        raise ArithmeticError("the sum over the ranks is wrong")
    numbers.zero_()
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(numbers)
    if place.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / ROUNDS
    dist.destroy_process_group()
    return seconds


def main(group: str, rank: str, device: str) -> None:
    """One rank."""
    print(json.dumps({"seconds": measure(Group(**json.loads(group)), int(rank), int(device))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
