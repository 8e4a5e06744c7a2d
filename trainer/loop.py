"""Training and evaluation: plain PyTorch, the same on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from trainer.config import Config, seconds
from trainer.model import set_training
from trainer.ranks import Ranks
from trainer.rundir import Json
from trainer.tiles.augment import draw, evaluation_batch, training_batch
from trainer.tiles.loader import TileSet, batches
from trainer.tiles.order import Indices, batch_bounds, epoch_order, evaluation_batches, rank_slice

EVALUATION_BATCH = 64
"""Fixed, so that no logit depends on the number of workers."""
CUDA_AGREE_EVERY = 8
"""Steps between two agreements on a GPU, where each costs a synchronisation; on the CPU they agree every step."""


class DivergedError(Exception):
    """The loss or a weight is no longer a number; the last checkpoint is from before."""


class StopRequestedError(Exception):
    """A stop was asked for, and all ranks agreed on it at this step."""


@dataclass
class Position:
    """How far a run is and what it has seen: all that a resume needs beside tensors."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches of the current epoch that are done
    step: int = 0  # optimizer steps in all
    loss_sum: float = 0.0  # over the tiles of the current epoch, weighted as the loss is
    seconds: float = 0.0  # spent training in the current epoch
    history: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class Learner:
    """A network cut in two, and what makes its second half learn."""

    frozen: nn.Sequential
    learning: nn.Sequential
    forward: nn.Module  # `learning`, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    norm: str
    precision: str
    micro_batch: int
    class_weights: Tensor  # (classes,) float32

    def logits(self, images: Tensor, learning: nn.Module) -> Tensor:
        """(n, classes) float32 logits of (n, 3, S, S) images; nothing is kept for gradients of the frozen half."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                features = self.frozen(images)
            logits: Tensor = learning(features)
            return logits.float()

    def state(self, position: Position) -> Json:
        """What a checkpoint keeps beside the learned tensors."""
        states = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        return {**states, "position": asdict(position)}


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings. `save` is called on every rank, `report` on rank 0
    alone; it answers whether to stop."""

    report: Callable[[Json], bool]
    save: Callable[[Position], None]
    attempt: int


def fit(
    learner: Learner, train: TileSet, val: TileSet, config: Config, position: Position, ranks: Ranks, hooks: Hooks
) -> None:
    """Trains from `position`, which moves along, to the last epoch; evaluates and saves after each.

    Raises:
        StopRequestedError: where a stop was asked for; the position at that step boundary has been saved.
        DivergedError: before anything that is not finite was saved.
    """
    while position.epoch < config.loop.epochs:
        try:
            train_epoch(learner, train, config, position, ranks, hooks)
            logits = evaluate(learner, val, "val", config, ranks, hooks.report)
        except StopRequestedError:
            _save(learner, position, ranks, hooks)
            raise
        _end_epoch(learner, train, scores(logits, val.labels), position, ranks, hooks)
        _save(learner, position, ranks, hooks)
        asked = ranks.first and hooks.report({"phase": "epoch", "record": position.history[-1]})
        if ranks.highest(asked):
            raise StopRequestedError


def train_epoch(
    learner: Learner, train: TileSet, config: Config, position: Position, ranks: Ranks, hooks: Hooks
) -> None:
    """Takes the steps that are left of the current epoch."""
    every, saved = config.loop.checkpoint_every, time.monotonic()
    agree_every = 1 if ranks.device.type == "cpu" else CUDA_AGREE_EVERY
    order = epoch_order(len(train), config.run.seed, position.epoch)
    bounds = batch_bounds(len(train), config.loop.batch_size)
    todo = [order[start:end] for start, end in bounds[position.batch :]]
    started, carried = time.monotonic() - position.seconds, position.loss_sum
    loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
    asked = False
    set_training(learner.learning, learner.norm)
    for share in _shares(learner, train, todo, config, position.epoch, ranks):
        loss_sum += take_step(learner, share, ranks.world_size)
        position.batch += 1
        position.step += 1
        last = position.batch == len(bounds)
        due = last or (isinstance(every, int) and position.step % every == 0)
        if due or position.step % agree_every == 0:
            position.seconds = time.monotonic() - started
            overdue = _is_time(every) and time.monotonic() - saved >= seconds(every)
            total, stop, overdue = agree(ranks, loss_sum, asked, overdue)
            position.loss_sum = carried + total
            if stop:
                raise StopRequestedError
            asked = ranks.first and hooks.report(_progress(position, config, len(train), bounds))
            due = due or overdue
        if due and not last:
            _save(learner, position, ranks, hooks)
            saved = time.monotonic()


def _is_time(every: str | int) -> TypeGuard[str]:
    return isinstance(every, str) and every != "epoch"


@dataclass(frozen=True)
class Share:
    """A rank's part of a global batch. `weight` is the whole batch's in the loss; it is taken in `parts` parts."""

    images: Tensor
    labels: Tensor
    weight: float
    parts: int


def _shares(
    learner: Learner, train: TileSet, todo: list[Indices], config: Config, epoch: int, ranks: Ranks
) -> Iterator[Share]:
    weights = learner.class_weights.cpu()
    mine = [members[rank_slice(len(members), ranks.rank, ranks.world_size)] for members in todo]
    for (members, tiles, labels), everyone in zip(batches(train, mine, ranks.device), todo, strict=True):
        drawn = draw(train.rows[members], config.run.seed, epoch, train.tile_size, config.augment)
        images = training_batch(tiles, drawn, config.augment)
        # Counted from the largest share, so that every rank makes as many backward passes.
        parts = math.ceil(math.ceil(len(everyone) / ranks.world_size) / learner.micro_batch)
        yield Share(images, labels, float(weights[torch.from_numpy(train.labels[everyone])].sum()), parts)


def take_step(learner: Learner, share: Share, world_size: int) -> Tensor:
    """One optimizer step on this rank's share of a global batch; returns the sum of its tiles' losses.

    DistributedDataParallel averages gradients over ranks, so a rank's summed loss is scaled by `world_size` over the
    weight of the whole batch: the step is along the gradient of the global batch, however that was dealt.
    """
    total = torch.zeros((), dtype=torch.float64, device=share.images.device)
    learner.optimizer.zero_grad()
    for part in range(share.parts):
        some = rank_slice(len(share.labels), part, share.parts)
        network = learner.forward
        last = part == share.parts - 1
        alone = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        with alone:
            logits = learner.logits(share.images[some], network)
            loss = F.cross_entropy(logits, share.labels[some], learner.class_weights, reduction="sum")
            torch.autograd.backward(loss * (world_size / share.weight))
        total += loss.detach()
    learner.optimizer.step()
    learner.schedule.step()
    return total


def agree(ranks: Ranks, loss_sum: Tensor, asked: bool, overdue: bool = False) -> tuple[float, bool, bool]:
    """The sum of all ranks' losses, and whether any was asked to stop or has a checkpoint overdue; one reduction.

    Raises:
        DivergedError: on every rank, where the sum is not finite.
    """
    wishes = torch.tensor([float(loss_sum), float(asked), float(overdue)], dtype=torch.float64)
    total, stop, save = ranks.total(wishes).tolist()
    if not math.isfinite(total):
        raise DivergedError(f"the loss is {total}")
    return total, stop > 0, save > 0


def evaluate(
    learner: Learner, tiles: TileSet, name: str, config: Config, ranks: Ranks, report: Callable[[Json], bool]
) -> NDArray[np.float32]:
    """Logits (n, classes) of every tile, on every rank, each computed once.

    Raises:
        StopRequestedError: where a stop was asked for.
    """
    # Statistics that each worker keeps for itself (norm: local) are rank 0's from here on, as in its checkpoint.
    ranks.spread(list(learner.learning.buffers()))
    learner.learning.eval()
    dealt = evaluation_batches(len(tiles), EVALUATION_BATCH, ranks.rank, ranks.world_size)
    mine = [np.arange(batch.start, batch.stop) for batch in dealt]
    rounds = math.ceil(len(tiles) / EVALUATION_BATCH / ranks.world_size)
    logits = torch.zeros(len(tiles), len(learner.class_weights))
    for turn, batch in zip_longest(range(rounds), batches(tiles, mine, ranks.device)):
        if batch is not None:
            members, pixels, _ = batch
            with torch.no_grad():
                images = evaluation_batch(pixels, config.augment)
                logits[torch.from_numpy(members)] = learner.logits(images, learner.learning).cpu()
        done = min(len(tiles), (turn + 1) * EVALUATION_BATCH * ranks.world_size)
        asked = ranks.first and report({"phase": name, "done": done, "total": len(tiles)})
        if ranks.highest(asked):
            raise StopRequestedError
    # Each row is zero on all ranks but one, so this sum is exact.
    return ranks.total(logits).numpy()


def scores(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Json:
    """Validation metrics of (n, classes) logits and (n,) labels; means over classes take those that have tiles."""
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    true, called = np.bincount(labels, minlength=classes), np.bincount(predicted, minlength=classes)
    there = true > 0
    return {
        "val/loss": float(F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))),
        "val/accuracy": float(right.sum() / len(labels)),
        "val/balanced_accuracy": float((right[there] / true[there]).mean()),
        "val/macro_f1": float((2 * right[there] / (true[there] + called[there])).mean()),
    }


def _end_epoch(learner: Learner, train: TileSet, found: Json, position: Position, ranks: Ranks, hooks: Hooks) -> None:
    """Adds the epoch to the history and moves on to the next."""
    weight = float(learner.class_weights.cpu()[torch.from_numpy(train.labels)].sum())
    record = {
        "epoch": position.epoch + 1,
        "step": position.step,
        "train/loss": position.loss_sum / weight,
        **found,
        "lr": learner.optimizer.param_groups[0]["lr"],
        "tiles_per_s": len(train) / position.seconds,
        "seconds": position.seconds,
        "world_size": ranks.world_size,
        "attempt": hooks.attempt,
    }
    position.history.append(record)
    position.epoch += 1
    position.batch, position.loss_sum, position.seconds = 0, 0.0, 0.0


def _progress(position: Position, config: Config, tiles: int, bounds: list[tuple[int, int]]) -> Json:
    done = bounds[position.batch - 1][1]
    return {
        "phase": "train",
        "epoch": position.epoch + 1,
        "epochs": config.loop.epochs,
        "step": position.step,
        "done": position.epoch * tiles + done,
        "total": config.loop.epochs * tiles,
        "loss": position.loss_sum / done,
        "tiles_per_s": done / position.seconds,
    }


def _save(learner: Learner, position: Position, ranks: Ranks, hooks: Hooks) -> None:
    """Saves, unless a weight is not finite."""
    bad = [name for name, tensor in learner.learning.state_dict().items() if not tensor.isfinite().all()]
    if ranks.highest(len(bad)):
        raise DivergedError(f"not finite: {', '.join(bad[:3])}")
    hooks.save(position)
