"""ResNet50, its stages, and how much of it learns."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import resnet50

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4", "avgpool")
"""The first module of each part that depth can unfreeze, in order: depth 5 starts at conv1, depth 0 at avgpool."""
HEAD = "fc."


def build(classes: int, seed: int) -> nn.Sequential:
    """A ResNet50 with a head for `classes`, initialised from `seed`, on the CPU.

    A flat `nn.Sequential` with torchvision's names (conv1, bn1, ..., layer4, avgpool, flatten, fc), so that it can be
    cut at any stage and its state dict is torchvision's. The last BatchNorm of each residual block starts at zero,
    which is how ResNets are best trained from random weights (Goyal et al. 2017, arXiv:1706.02677).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = resnet50(num_classes=classes, zero_init_residual=True)
    children = OrderedDict(network.named_children())
    head = children.pop("fc")
    return nn.Sequential(OrderedDict([*children.items(), ("flatten", nn.Flatten()), ("fc", head)]))


def cut(model: nn.Sequential, depth: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The frozen and the learning part of a network; `learning(frozen(x))` is `model(x)`.

    The frozen part gets no gradients and stays in evaluation mode.
    """
    names = [name for name, _ in model.named_children()]
    at = names.index(STAGES[len(STAGES) - 1 - depth])
    frozen, learning = model[:at], model[at:]
    frozen.requires_grad_(False).eval()
    return frozen, learning


def depth_of(parameter: str) -> int:
    """The least unfrozen depth at which a parameter learns, by its name: 0 for `fc.weight`, 5 for `bn1.bias`."""
    module = parameter.partition(".")[0]
    stage = {"bn1": "conv1", "fc": "avgpool"}.get(module, module)
    return len(STAGES) - 1 - STAGES.index(stage)


def set_training(learning: nn.Module, norm: str) -> None:
    """Puts the learning part in training mode; BatchNorm keeps its statistics where `norm` is frozen."""
    learning.train()
    if norm == "frozen":
        for module in learning.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def resolve_norm(norm: str, weights: str) -> str:
    """`auto` is frozen for pretrained weights and local for random ones, whose statistics are still to be learned."""
    if norm == "auto":
        return "local" if weights == "random" else "frozen"
    return norm
