"""Training and evaluation: plain PyTorch, the same on any number of ranks.

A network is cut in two. The frozen half, the trunk, makes features of images; the other half learns from them. Most
often there is one that learns; where only heads learn, there may be many on the features of one trunk, and each ends
as if it had been alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Protocol, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from trainer.config import Config, seconds
from trainer.ema import Ema, evaluated, learned
from trainer.errors import RunError
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
class Outcome:
    """How a training ended: done, stopped, diverged, short of memory or failed, and what there is to say."""

    status: str
    message: str = ""


@dataclass(frozen=True)
class Trunk:
    """The half of a network that is frozen. Takes `micro_batch` tiles at once."""

    frozen: nn.Sequential
    precision: str
    micro_batch: int

    def features(self, images: Tensor) -> Tensor:
        """What the other half learns from, of (n, 3, S, S) images; nothing is kept for gradients."""
        with _autocast(images, self.precision), torch.no_grad():
            features: Tensor = self.frozen(images)
            return features


class Evaluable(Protocol):
    """What makes (n, classes) logits of a trunk's features, by the network that is `evaluated`."""

    @property
    def evaluated(self) -> nn.Sequential:
        """The network."""

    @property
    def classes(self) -> int:
        """How many there are."""

    def logits(self, features: Tensor, network: nn.Module) -> Tensor:
        """(n, classes) float32 logits of n tiles' features."""


@dataclass(frozen=True)
class Trained:
    """The half of a network that has learned, and learns no more."""

    evaluated: nn.Sequential
    classes: int
    precision: str

    def logits(self, features: Tensor, network: nn.Module) -> Tensor:
        """(n, classes) float32 logits of n tiles' features."""
        return _logits(features, network, self.precision)


@dataclass(frozen=True)
class Learner:
    """The half of a network that learns from a trunk's features, and what makes it learn."""

    learning: nn.Sequential
    forward: nn.Module  # `learning`, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    norm: str
    precision: str
    class_weights: Tensor  # (classes,) float32
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema: Ema | None = None

    @property
    def evaluated(self) -> nn.Sequential:
        """The network that is evaluated: the averaged one where there is one, else the one that learns."""
        return self.ema.network if self.ema else self.learning

    def logits(self, features: Tensor, network: nn.Module) -> Tensor:
        """(n, classes) float32 logits of n tiles' features, by the network that learns or the one that is evaluated."""
        return _logits(features, network, self.precision)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_weights)

    def add_gradients(self, features: Tensor, labels: Tensor, scale: float, *, last: bool) -> Tensor:
        """Adds the gradients of n tiles' summed loss times `scale`; returns the sum.

        Ranks share their gradients with the `last` tiles of a step.
        """
        network = self.forward
        alone = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        with alone:
            logits = self.logits(features, network)
            smoothing = self.label_smoothing
            loss = F.cross_entropy(logits, labels, self.class_weights, reduction="sum", label_smoothing=smoothing)
            torch.autograd.backward(loss * scale)
        return loss.detach()

    def step(self) -> None:
        """Takes a step along the gradients; these are whole, and the same on every rank, when they are clipped."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.learning.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.ema:
            self.ema.update(self.learning)

    def tensors(self) -> dict[str, Tensor]:
        """What training changed, by the names in a checkpoint."""
        return {**self.learning.state_dict(), **(self.ema.tensors() if self.ema else {})}

    def load(self, tensors: Mapping[str, Tensor], state: Json) -> None:
        """Goes back to what a checkpoint kept."""
        self.learning.load_state_dict(learned(tensors))
        self.evaluated.load_state_dict(evaluated(tensors))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def state(self, position: Position) -> Json:
        """What a checkpoint keeps beside tensors."""
        states = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        return {**states, "position": asdict(position)}


def _logits(features: Tensor, network: nn.Module, precision: str) -> Tensor:
    with _autocast(features, precision):
        logits: Tensor = network(features)
        return logits.float()


def _autocast(tensor: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of a run's surroundings. `save` is called on every rank, `report` on rank 0 alone, with each
    epoch's record; it answers whether to stop. `list_tiles` keeps which members of the training tiles were learned from
    last by a training that diverged, on rank 0 alone; it answers what there is to say of it."""

    report: Callable[[Json], bool]
    save: Callable[[Position], None]
    attempt: int
    list_tiles: Callable[[Position, str, Indices], str] = lambda *_: ""


@dataclass
class Training:
    """A learner on its way, and how it ended, if it did before its last epoch."""

    learner: Learner
    config: Config
    position: Position
    hooks: Hooks
    ended: Outcome | None = None
    recent: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    """Members of the training tiles in the steps that all ranks last agreed on."""

    @property
    def goes_on(self) -> bool:
        """Whether there are epochs to come."""
        return self.ended is None and self.position.epoch < self.config.loop.epochs

    def diverge(self, why: str, ranks: Ranks) -> None:
        """Ends it; the last checkpoint is from before."""
        listed = self.hooks.list_tiles(self.position, why, self.recent) if ranks.first else ""
        message = (
            f"training diverged at step {self.position.step} (epoch {self.position.epoch + 1}): {why}. {listed}The "
            f"checkpoints are from before; try a lower optim.lr than {self.config.optim.lr:g}, or loop.precision: fp32"
        )
        self.ended = Outcome("diverged", message)
        if ranks.first:
            self.hooks.report({"phase": "diverged", "message": message})

    def save(self, ranks: Ranks) -> None:
        """Saves, unless a weight is not finite."""
        bad = [name for name, tensor in self.learner.tensors().items() if not tensor.isfinite().all()]
        if ranks.highest(len(bad)):
            self.diverge(f"not finite: {', '.join(bad[:3])}", ranks)
            return
        with self.failing_alone():
            self.hooks.save(self.position)

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """What fails inside ends this training, and no other."""
        try:
            yield
        except RunError as error:
            self.ended = Outcome("failed", str(error))


def fit(
    trunk: Trunk,
    trainings: Sequence[Training],
    train: TileSet,
    val: TileSet,
    ranks: Ranks,
    report: Callable[[Json], bool],
) -> None:
    """Trains each from its position, which moves along, to its last epoch; evaluates and saves after each epoch.

    Trainings agree in everything that their tiles go through before the trunk's features are there. One that was saved
    further on than others, before all of them were killed, waits for these. One that diverges ends, before anything
    that is not finite was saved, and so does one that cannot be saved; the others go on.

    Args:
        trunk: makes the features that all learn from.
        trainings: what learns.
        train: tiles to learn from.
        val: tiles to validate on.
        ranks: the workers.
        report: is called on rank 0 with what is under way; answers whether to stop.

    Raises:
        StopRequestedError: where a stop was asked for; all positions at that step boundary have been saved.
    """
    while going := [training for training in trainings if training.goes_on]:
        epoch = min(training.position.epoch for training in going)
        here = [training for training in going if training.position.epoch == epoch]
        try:
            if not train_epoch(trunk, here, train, ranks, report):
                continue
            learners = [training.learner for training in here]
            found = evaluate(trunk, learners, val, "val", here[0].config, ranks, report)
        except StopRequestedError:
            for training in here:
                training.save(ranks)
            raise
        asked = False
        for training, logits in zip(here, found, strict=True):
            result = scores(logits, val.labels)
            if not math.isfinite(result["val/loss"]):  # whatever logits are not finite
                training.diverge("not finite: val/loss", ranks)
                continue
            _end_epoch(training, train, result, ranks)
            training.save(ranks)
            if training.ended is None and ranks.first:
                asked |= training.hooks.report({"phase": "epoch", "record": training.position.history[-1]})
        if ranks.highest(asked):
            raise StopRequestedError


def train_epoch(
    trunk: Trunk, trainings: Sequence[Training], train: TileSet, ranks: Ranks, report: Callable[[Json], bool]
) -> bool:
    """Takes steps of the trainings' epoch; answers whether all have come to its end.

    Those that are furthest behind take steps together, until they have caught up with another, or one of them ends.
    """
    config = trainings[0].config
    bounds = batch_bounds(len(train), config.loop.batch_size)
    stands = sorted({training.position.batch for training in trainings})
    together = [training for training in trainings if training.position.batch == stands[0]]
    until = stands[1] if len(stands) > 1 else len(bounds)
    _take_steps(trunk, together, until, train, bounds, ranks, report)
    return all(training.ended is None and training.position.batch == len(bounds) for training in trainings)


def _take_steps(
    trunk: Trunk,
    trainings: Sequence[Training],
    until: int,
    train: TileSet,
    bounds: Sequence[tuple[int, int]],
    ranks: Ranks,
    report: Callable[[Json], bool],
) -> None:
    """Takes the steps of an epoch up to batch `until`, in trainings that stand at the same batch; fewer if one ends."""
    config, place = trainings[0].config, trainings[0].position
    every, saved = config.loop.checkpoint_every, time.monotonic()
    agree_every = 1 if ranks.device.type == "cpu" else CUDA_AGREE_EVERY
    order = epoch_order(len(train), config.run.seed, place.epoch)
    todo = [order[start:end] for start, end in bounds[place.batch : until]]
    known = first = place.batch
    learners = [training.learner for training in trainings]
    before = [(training.position.seconds, training.position.loss_sum) for training in trainings]
    started = time.monotonic()
    losses = torch.zeros(len(trainings), dtype=torch.float64, device=ranks.device)
    asked = False
    for learner in learners:
        set_training(learner.learning, learner.norm)
    for share in _shares(trunk, learners, train, todo, config, place.epoch, ranks):
        losses += take_step(trunk, learners, share, ranks.world_size)
        for training in trainings:
            training.position.batch += 1
            training.position.step += 1
        last = place.batch == until
        due = last or (isinstance(every, int) and place.step % every == 0)
        if due or place.step % agree_every == 0:
            overdue = _is_time(every) and time.monotonic() - saved >= seconds(every)
            totals, stop, overdue = agree(ranks, losses, asked, overdue)
            elapsed = time.monotonic() - started
            recent, known = np.concatenate(todo[known - first : place.batch - first]), place.batch
            for training, (spent, carried), total in zip(trainings, before, totals, strict=True):
                training.recent = recent
                training.position.seconds, training.position.loss_sum = spent + elapsed, carried + total
                if not math.isfinite(total):
                    training.diverge(f"the loss is {total}", ranks)
            if any(training.ended for training in trainings):
                return
            if stop:
                raise StopRequestedError
            asked = ranks.first and report(_progress(place, config, len(train), bounds))
            due = due or overdue
        if due and not last:
            for training in trainings:
                training.save(ranks)
            if any(training.ended for training in trainings):
                return
            saved = time.monotonic()


def _is_time(every: str | int) -> TypeGuard[str]:
    return isinstance(every, str) and every != "epoch"


@dataclass(frozen=True)
class Share:
    """A rank's part of a global batch. `weights` are the whole batch's in the loss of each learner; it is taken in
    `parts` parts."""

    images: Tensor
    labels: Tensor
    weights: list[float]
    parts: int


def _shares(
    trunk: Trunk,
    learners: Sequence[Learner],
    train: TileSet,
    todo: list[Indices],
    config: Config,
    epoch: int,
    ranks: Ranks,
) -> Iterator[Share]:
    by_class = [learner.class_weights.cpu() for learner in learners]
    mine = [members[rank_slice(len(members), ranks.rank, ranks.world_size)] for members in todo]
    for (members, tiles, labels), everyone in zip(batches(train, mine, ranks.device), todo, strict=True):
        drawn = draw(train.rows[members], config.run.seed, epoch, train.tile_size, config.augment)
        images = training_batch(tiles, drawn, config.augment)
        # Counted from the largest share, so that every rank makes as many backward passes.
        parts = math.ceil(math.ceil(len(everyone) / ranks.world_size) / trunk.micro_batch)
        classes = torch.from_numpy(train.labels[everyone])
        yield Share(images, labels, [float(weights[classes].sum()) for weights in by_class], parts)


def take_step(trunk: Trunk, learners: Sequence[Learner], share: Share, world_size: int) -> Tensor:
    """One optimizer step of each learner on this rank's share of a global batch; (learners,) sums of tiles' losses.

    DistributedDataParallel averages gradients over ranks, so a rank's summed loss is scaled by `world_size` over the
    weight of the whole batch: the step is along the gradient of the global batch, however that was dealt.
    """
    totals = torch.zeros(len(learners), dtype=torch.float64, device=share.images.device)
    for learner in learners:
        learner.optimizer.zero_grad()
    for part in range(share.parts):
        some = rank_slice(len(share.labels), part, share.parts)
        features, labels, last = trunk.features(share.images[some]), share.labels[some], part == share.parts - 1
        for place, (learner, weight) in enumerate(zip(learners, share.weights, strict=True)):
            totals[place] += learner.add_gradients(features, labels, world_size / weight, last=last)
    for learner in learners:
        learner.step()
    return totals


def agree(ranks: Ranks, losses: Tensor, asked: bool, overdue: bool = False) -> tuple[list[float], bool, bool]:
    """The sums of all ranks' losses, and whether any was asked to stop or has a checkpoint overdue; one reduction."""
    wishes = torch.tensor([float(asked), float(overdue)], dtype=torch.float64)
    *totals, stop, save = ranks.total(torch.cat([losses.cpu(), wishes])).tolist()
    return totals, stop > 0, save > 0


def evaluate(
    trunk: Trunk,
    learners: Sequence[Evaluable],
    tiles: TileSet,
    name: str,
    config: Config,
    ranks: Ranks,
    report: Callable[[Json], bool],
) -> list[NDArray[np.float32]]:
    """Each learner's logits (n, classes) of every tile, on every rank, each computed once.

    Raises:
        StopRequestedError: where a stop was asked for.
    """
    networks = [learner.evaluated for learner in learners]
    for network in networks:
        # Statistics that each worker keeps for itself (norm: local) are rank 0's from here on, as in its checkpoint.
        ranks.spread(list(network.buffers()))
        network.eval()
    dealt = evaluation_batches(len(tiles), EVALUATION_BATCH, ranks.rank, ranks.world_size)
    mine = [np.arange(batch.start, batch.stop) for batch in dealt]
    rounds = math.ceil(len(tiles) / EVALUATION_BATCH / ranks.world_size)
    logits = torch.zeros(len(learners), len(tiles), learners[0].classes)
    for turn, batch in zip_longest(range(rounds), batches(tiles, mine, ranks.device)):
        if batch is not None:
            members, pixels, _ = batch
            with torch.no_grad():
                features = trunk.features(evaluation_batch(pixels, config.augment))
                for found, learner, network in zip(logits, learners, networks, strict=True):
                    found[torch.from_numpy(members)] = learner.logits(features, network).cpu()
        done = min(len(tiles), (turn + 1) * EVALUATION_BATCH * ranks.world_size)
        asked = ranks.first and report({"phase": name, "done": done, "total": len(tiles)})
        if ranks.highest(asked):
            raise StopRequestedError
    # Each row is zero on all ranks but one, so this sum is exact.
    return list(ranks.total(logits).numpy())


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


def _end_epoch(training: Training, train: TileSet, found: Json, ranks: Ranks) -> None:
    """Adds the epoch to the history and moves on to the next."""
    learner, position = training.learner, training.position
    weight = float(learner.class_weights.cpu()[torch.from_numpy(train.labels)].sum())
    record = {
        "epoch": position.epoch + 1,
        "step": position.step,
        "train/loss": position.loss_sum / weight,
        **found,
        "lr": learner.optimizer.param_groups[-1]["lr"],  # the head's
        "tiles_per_s": len(train) / position.seconds,
        "seconds": position.seconds,
        "world_size": ranks.world_size,
        "attempt": training.hooks.attempt,
    }
    position.history.append(record)
    position.epoch += 1
    position.batch, position.loss_sum, position.seconds = 0, 0.0, 0.0


def _progress(position: Position, config: Config, tiles: int, bounds: Sequence[tuple[int, int]]) -> Json:
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
