"""The workers that train together, as one of them sees it. One worker alone needs no process group."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This worker's rank, how many there are, its device, and a CPU group to agree over."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None

    @classmethod
    def of_process_group(cls, device: torch.device, timeout_s: int) -> Ranks:
        """The ranks of the default process group; agreement goes over gloo, whatever gradients go over."""
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup), "every rank is a member"
        return cls(dist.get_rank(), dist.get_world_size(), device, group)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """The highest value that any rank gave."""
        return int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX).item())

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on the CPU."""
        return self._reduced(tensor.cpu().clone(), dist.ReduceOp.SUM)

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.group is not None:
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def everyones(self, value: T, limit_s: float) -> list[T]:
        """Each rank's value, by rank; they may come at times that differ by up to `limit_s`."""
        values = [value] * self.world_size
        if self.group is not None:
            dist.monitored_barrier(self.group, timedelta(seconds=limit_s))
            dist.all_gather_object(values, value, group=self.group)
        return values

    def spread(self, tensors: list[Tensor]) -> None:
        """Overwrites tensors by rank 0's."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def _reduced(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            dist.all_reduce(tensor, operation, group=self.group)
        return tensor
