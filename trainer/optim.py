"""The optimizer, its parameter groups, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer.config import Config, OptimSection
from trainer.model import depth_of
from trainer.tiles.order import batch_bounds

MOMENTUM = 0.9


def make_optimizer(learning: nn.Module, optim: OptimSection) -> Optimizer:
    """The optimizer of what learns, by name; what is not an option is as torch has it."""
    groups = parameter_groups(learning, optim)
    if optim.name == "sgd":
        momentum = MOMENTUM if optim.momentum is None else optim.momentum
        return SGD(groups, lr=optim.lr, momentum=momentum, fused=True)
    kind = AdamW if optim.name == "adamw" else Adam
    return kind(groups, lr=optim.lr, fused=True)


def parameter_groups(learning: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    """The parameters that share a learning rate and a weight decay, in the order of the network: the head's are last.

    Norms and biases, which have one dimension, do not decay (He et al. 2019, arXiv:1812.01187). A stage that begins to
    learn at depth d has lr * layer_decay ** d (discriminative fine-tuning: Howard & Ruder 2018, arXiv:1801.06146).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learning.named_parameters():
        lr = optim.lr * optim.layer_decay ** depth_of(name)
        decay = optim.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def make_schedule(optimizer: Optimizer, config: Config, tiles: int) -> LRScheduler:
    """The learning rate of each step of the whole run, over `tiles` training tiles, for each parameter group."""
    optim, an_epoch = config.optim, len(batch_bounds(tiles, config.loop.batch_size))
    steps = config.loop.epochs * an_epoch
    if optim.schedule == "onecycle":
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps)
    warm_up = min(round(optim.warmup_epochs * an_epoch), steps - 1)
    end = steps if optim.schedule == "cosine" else None
    return LambdaLR(optimizer, lambda step: lr_factor(step, warm_up, end))


def lr_factor(step: int, warm_up: int, end: int | None) -> float:
    """What the learning rate of a step, counted from 0, is multiplied by.

    It rises in equal steps to 1 in the last of `warm_up` steps (Goyal et al. 2017, arXiv:1706.02677), and from there
    stays, or falls along half a cosine to 0 at `end` (Loshchilov & Hutter 2017, arXiv:1608.03983).
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if end is None:
        return 1.0
    return (1 + math.cos(math.pi * (step - warm_up) / (end - warm_up))) / 2
