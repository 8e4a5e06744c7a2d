"""What one worker does, from the first file it reads to the last it writes. No Ray here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer.checkpoint import (
    Checkpoint,
    best_good,
    commit,
    prune,
    read,
    read_base,
    resume_point,
    write_history,
)
from trainer.data import RunData, open_data
from trainer.errors import RunError
from trainer.loop import DivergedError, Hooks, Learner, Position, StopRequestedError, evaluate, fit
from trainer.model import build, cut, set_training
from trainer.plan import Plan
from trainer.predict import write_predictions
from trainer.ranks import Ranks
from trainer.rundir import Json, append_json_line, now
from trainer.tiles.order import batch_bounds

Report = Callable[[Json], bool]
WARM_UP_PASSES = 2


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: done, stopped (with a good checkpoint) or failed, and what there is to say."""

    status: str
    message: str = ""


@dataclass(frozen=True)
class Start:
    """Where an attempt begins. `problem` says why it cannot."""

    attempt: int = 0
    checkpoint: Checkpoint | None = None
    problem: str | None = None


def work(plan: Plan, ranks: Ranks, report: Report) -> Outcome:
    """Trains from wherever the run is to its end, and writes the predictions of its best checkpoint."""
    torch.set_num_threads(plan.threads)
    data = open_data(plan.config, plan.run.split_file)
    learner = make_learner(plan, data, ranks)
    start = ranks.from_first(claim(plan, report) if ranks.first else Start())
    if start.problem:
        return Outcome("failed", start.problem)
    position = resume(learner, start)
    hooks = make_hooks(plan, learner, start.attempt, report)
    try:
        fit(learner, data.tiles("train"), data.tiles("val"), plan.config, position, ranks, hooks)
        predict(plan, data, learner, position, ranks, hooks)
    except StopRequestedError:
        return Outcome("stopped", f"at step {position.step}, epoch {position.epoch + 1}")
    except DivergedError as error:
        return Outcome("failed", _diverged(plan, position, error))
    return Outcome("done")


def make_learner(plan: Plan, data: RunData, ranks: Ranks) -> Learner:
    """The network at its starting weights, cut at the unfrozen depth, with optimizer and schedule."""
    model = build(len(plan.classes), plan.config.run.seed)
    model.load_state_dict(read_base(plan.run, plan.base_sha256), strict=False)
    model.to(ranks.device).to(memory_format=torch.channels_last)
    frozen, learning = cut(model, plan.config.model.unfrozen_depth)
    if plan.norm == "sync":
        learning = nn.SyncBatchNorm.convert_sync_batchnorm(learning)  # type: ignore[no-untyped-call]
    forward = _distributed(learning, ranks)
    optimizer = torch.optim.Adam(learning.parameters(), lr=plan.config.optim.lr)
    learner = Learner(
        frozen,
        learning,
        forward,
        optimizer,
        make_schedule(plan, optimizer, len(data.tiles("train"))),
        plan.norm,
        plan.precision,
        plan.micro_batch,
        class_weights(plan, data).to(ranks.device),
    )
    if ranks.world_size > 1:
        settle(learner, plan, ranks)
    return learner


def make_schedule(plan: Plan, optimizer: torch.optim.Optimizer, tiles: int) -> LRScheduler:
    """The learning rate of each step of the whole run."""
    config = plan.config
    if config.optim.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    steps = config.loop.epochs * len(batch_bounds(tiles, config.loop.batch_size))
    return OneCycleLR(optimizer, max_lr=config.optim.lr, total_steps=steps)


def class_weights(plan: Plan, data: RunData) -> torch.Tensor:
    """(classes,) weights in the loss: ones, or inversely proportional to a class's training tiles."""
    counts = torch.bincount(torch.from_numpy(data.tiles("train").labels), minlength=len(plan.classes))
    if plan.config.optim.class_weights == "none":
        return torch.ones(len(counts))
    return counts.sum() / (len(counts) * counts)


def _distributed(learning: nn.Sequential, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return learning
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(learning, device_ids=devices, gradient_as_bucket_view=True)


def settle(learner: Learner, plan: Plan, ranks: Ranks) -> None:
    """Lets DistributedDataParallel arrange its buckets, by passes that change nothing.

    It rearranges them after the first backward pass, and sums of three and more ranks depend on the arrangement in
    the last bit. Settled before any state is loaded, an attempt that resumes sums as one that never stopped.
    """
    before = {name: tensor.clone() for name, tensor in learner.learning.state_dict().items()}
    size = plan.config.augment.input_size
    images = torch.zeros((2, 3, size, size), device=ranks.device)
    set_training(learner.learning, learner.norm)
    for _ in range(WARM_UP_PASSES):
        torch.autograd.backward(learner.logits(images, learner.forward).sum() * 0.0)
    learner.optimizer.zero_grad()
    learner.learning.load_state_dict(before)


def claim(plan: Plan, report: Report) -> Start:
    """Finds where the run goes on and claims the next attempt, so that no earlier one can go on beside it."""
    try:
        while True:
            checkpoint, said = resume_point(plan.run)
            step = checkpoint.step if checkpoint else 0
            record = {"resumed_step": step, "workers": plan.workers, "started": now(), "said": said, **_where()}
            if (attempt := plan.run.claim_attempt(record)) is not None:
                begins = (
                    f"attempt {attempt} goes on from {checkpoint.path.name}"
                    if checkpoint
                    else f"attempt {attempt} begins"
                )
                report({"phase": "start", "lines": [*said, begins]})
                return Start(attempt, checkpoint)
    except RunError as error:
        return Start(problem=str(error))


def resume(learner: Learner, start: Start) -> Position:
    """Loads the checkpoint to start from, if there is one."""
    if start.checkpoint is None:
        return Position()
    tensors, state = read(start.checkpoint)
    learner.learning.load_state_dict(tensors)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    return Position(**state["position"])


def make_hooks(plan: Plan, learner: Learner, attempt: int, report: Report) -> Hooks:
    """How the loop saves and reports."""
    facts = {
        "config_hash": plan.config_hash,
        "data_fingerprint": plan.fingerprints["data.tiles"],
        "base_sha256": plan.base_sha256,
        "world_size": plan.workers,
        "micro_batch": plan.micro_batch,
    }

    def save(position: Position) -> None:
        state = learner.state(position)
        commit(
            plan.run, position.step, attempt, learner.learning.state_dict(), state, {**facts, "epoch": position.epoch}
        )
        write_history(plan.run, position.history, plan.config.loop.best_metric)
        prune(plan.run, plan.config.loop.keep)

    return Hooks(report, save, attempt)


def predict(plan: Plan, data: RunData, learner: Learner, position: Position, ranks: Ranks, hooks: Hooks) -> None:
    """Writes the best checkpoint's predictions for every part that has none yet."""
    best = ranks.from_first(
        best_good(plan.run, position.history, plan.config.loop.best_metric) if ranks.first else None
    )
    assert best is not None, "rank 0 has named a checkpoint, or failed"
    learner.learning.load_state_dict(read(best)[0])
    for part in data.evaluated():
        if ranks.highest(plan.run.predictions_file(part).exists()):
            continue
        logits = evaluate(learner, data.tiles(part), part, plan.config, ranks, hooks.report)
        if ranks.first:
            if part != "val":
                look = {"time": now(), "split": part, "checkpoint": best.path.name, "attempt": hooks.attempt}
                append_json_line(plan.run.evaluations_file, {**look, "tiles": len(logits), "by": "training's end"})
            write_predictions(plan.run.predictions_file(part), data.index(part), logits, plan.classes)


def _where() -> Json:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _diverged(plan: Plan, position: Position, error: DivergedError) -> str:
    return (
        f"training diverged at step {position.step} (epoch {position.epoch + 1}): {error}. The checkpoints are from "
        f"before; try a lower optim.lr than {plan.config.optim.lr:g}, or loop.precision: fp32"
    )
