"""The exponential moving average of the weights: kept beside them, and evaluated in their place."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

PREFIX = "ema."
"""Of the averaged tensors' names in a checkpoint; no name in a ResNet50 begins so."""


class Ema:
    """A second network whose tensors move a little towards those that learn, after each step.

    As torch's `AveragedModel(use_buffers=True)`, begun with the starting weights: what BatchNorm has learned about its
    inputs is averaged too, since it must fit the averaged weights. Whole numbers, which count batches, are copied.

    Each rank averages for itself: weights are alike on all of them, and statistics that they do not share (norm: local)
    are rank 0's where they are evaluated or saved.
    """

    def __init__(self, learning: nn.Sequential, decay: float) -> None:
        self.network = deepcopy(learning).requires_grad_(False).eval()
        self.decay = decay

    def update(self, learning: nn.Module) -> None:
        """Takes a step of what learns into account."""
        mine, theirs = self.network.state_dict(), learning.state_dict()
        real = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in real], [theirs[name] for name in real], 1 - self.decay)
        for name in mine.keys() - set(real):
            mine[name].copy_(theirs[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it, beside what learns."""
        return {PREFIX + name: tensor for name, tensor in self.network.state_dict().items()}


def learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors to train on from."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}


def evaluated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors to evaluate: the averaged ones where there are some, else those that learned."""
    averaged = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return averaged or dict(tensors)
