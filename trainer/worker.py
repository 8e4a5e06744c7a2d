"""What one worker does, from the first file it reads to the last it writes. No Ray here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
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
from trainer.copier import Copier
from trainer.data import RunData, open_data
from trainer.errors import RunError, UsageError
from trainer.loop import DivergedError, Hooks, Learner, Position, StopRequestedError, evaluate, fit
from trainer.model import build, cut, set_training
from trainer.plan import Plan, as_begun, halve_micro_batch
from trainer.predict import predicted_by, write_predictions
from trainer.ranks import Ranks
from trainer.rundir import Json, append_json_line, now
from trainer.scale import unseen_gpus
from trainer.tensorboard import with_events
from trainer.tiles.order import batch_bounds

T = TypeVar("T")
Report = Callable[[Json], bool]
WARM_UP_PASSES = 2
OPENING_LIMIT_S = 3600.0
"""In which every node must have its data: some copy it to their own disk first, and some disks are slow."""
STOP_WAIT_S = 10.0
"""For the mirror, when a stop was asked for: a batch system's grace may be half a minute."""


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: done, stopped, diverged, short of memory or failed, and what there is to say."""

    status: str
    message: str = ""


@dataclass(frozen=True)
class Start:
    """Where an attempt begins."""

    attempt: int
    checkpoint: Checkpoint | None


def work(plan: Plan, ranks: Ranks, report: Report) -> Outcome:
    """Trains from wherever the run is to its end, and writes the predictions of its best checkpoint."""
    if plan.scale.gpu and ranks.device.type != "cuda":
        return Outcome("failed", f"{socket.gethostname()}: {unseen_gpus()}")
    torch.set_num_threads(plan.scale.threads)
    torch.backends.cudnn.allow_tf32 = plan.precision != "fp32"
    position = Position()
    try:
        data = on_all(ranks, lambda: open_here(plan))
        learner = make_learner(plan, data, ranks)
        start = on_first(ranks, lambda: claim(plan, ranks, report))
        position = resume(learner, start)
        on_first(ranks, lambda: write_history(plan.run, position.history, plan.config.loop.best_metric))
        with mirrored(plan, start.attempt, ranks, report) as saved:
            hooks = make_hooks(plan, learner, start.attempt, ranks, report, saved)
            fit(learner, data.tiles("train"), data.tiles("val"), plan.config, position, ranks, hooks)
            predict(plan, data, learner, position, ranks, hooks)
    except StopRequestedError:
        return Outcome("stopped", f"at step {position.step}, with a good checkpoint")
    except DivergedError as error:
        return Outcome("diverged", _diverged(plan, position, error))
    except (UsageError, RunError) as error:
        return Outcome("failed", str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return take_less(plan, ranks, report)
    return Outcome("done")


def work_alone(plan: Plan, report: Report) -> Outcome:
    """`work` as the only worker, in this process; where memory runs out, again with fewer tiles at once."""
    ranks = Ranks(device=torch.device("cuda" if plan.scale.gpu else "cpu"))
    while (outcome := work(as_begun(plan), ranks, report)).status == "short of memory":
        torch.cuda.empty_cache()
    return outcome


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory, or this machine's, was not enough. The CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def take_less(plan: Plan, ranks: Ranks, report: Report) -> Outcome:
    """Has the next start take fewer tiles at once.

    Raises:
        RuntimeError: where other ranks wait for this one, so that all of them are started again.
    """
    try:
        note = halve_micro_batch(plan)
        report({"phase": "note", "lines": [note]})
        outcome = Outcome("short of memory", note)
    except RunError as error:
        outcome = Outcome("failed", str(error))
    if ranks.world_size > 1:
        raise RuntimeError(outcome.message)
    return outcome


def on_first(ranks: Ranks, act: Callable[[], T]) -> T:
    """What `act` answers on rank 0, on every rank.

    Raises:
        RunError: on every rank, where it failed on rank 0: none waits for the others, and nothing is tried again.
    """
    answer: T | None = None
    problem: str | None = None
    if ranks.first:
        try:
            answer = act()
        except (RunError, OSError) as error:
            problem = str(error)
    answer, problem = ranks.from_first((answer, problem))
    if problem is not None:
        raise RunError(problem)
    return cast(T, answer)


def on_all(ranks: Ranks, act: Callable[[], T]) -> T:
    """What `act` answers here, once all ranks have done it.

    Raises:
        RunError: on every rank, where it failed on one, in its words.
    """
    answer: T | None = None
    problem: str | None = None
    try:
        answer = act()
    except (UsageError, RunError, OSError) as error:
        problem = f"{socket.gethostname()}: {error}" if ranks.world_size > 1 else str(error)
    if problems := list(filter(None, ranks.everyones(problem, OPENING_LIMIT_S))):
        raise RunError(problems[0])
    return cast(T, answer)


def open_here(plan: Plan) -> RunData:
    """The run's data, as this node reads it."""
    data = open_data(plan.config, plan.run.split_file)
    return data if plan.config.data.stage is None else data.staged(plan.config.data.stage)


def make_learner(plan: Plan, data: RunData, ranks: Ranks) -> Learner:
    """The network at its starting weights, cut at the unfrozen depth, with optimizer and schedule."""
    model = build(len(plan.classes), plan.config.run.seed)
    model.load_state_dict(read_base(plan.run, plan.base_sha256), strict=False)
    model.to(ranks.device).to(memory_format=torch.channels_last)
    frozen, learning = cut(model, plan.config.model.unfrozen_depth)
    if plan.norm == "sync":
        learning = nn.SyncBatchNorm.convert_sync_batchnorm(learning)  # type: ignore[no-untyped-call]
    forward = _distributed(learning, ranks)
    optimizer = torch.optim.Adam(learning.parameters(), lr=plan.config.optim.lr, fused=True)
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


def claim(plan: Plan, ranks: Ranks, report: Report) -> Start:
    """Finds where the run goes on and claims the next attempt, so that no earlier one can go on beside it."""
    while True:
        # Numbered before the search: whoever claims this number meanwhile has searched as well as we have.
        attempt = plan.run.newest_attempt() + 1
        checkpoint, said = resume_point(plan.run)
        step = checkpoint.step if checkpoint else 0
        record = {"resumed_step": step, "workers": ranks.world_size, "started": now(), "said": said, **_where()}
        if plan.run.claim_attempt(attempt, record):
            begins = f"goes on from {checkpoint.path.name}" if checkpoint else "begins"
            report({"phase": "start", "lines": [*said, f"attempt {attempt} {begins}"]})
            return Start(attempt, checkpoint)


def check_is_newest(plan: Plan, attempt: int) -> None:
    """Nothing is written by an attempt that has lost its run to a later one.

    Raises:
        RunError: where that is so.
    """
    if (newest := plan.run.newest_attempt()) > attempt:
        raise RunError(f"attempt {newest} has taken run {plan.run.name} over from attempt {attempt}, which ends here")


def resume(learner: Learner, start: Start) -> Position:
    """Loads the checkpoint to start from, if there is one."""
    if start.checkpoint is None:
        return Position()
    tensors, state = read(start.checkpoint)
    learner.learning.load_state_dict(tensors)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    return Position(**state["position"])


@contextmanager
def mirrored(plan: Plan, attempt: int, ranks: Ranks, report: Report) -> Iterator[Callable[[], None]]:
    """Copies the run to its mirror, if it has one, while the context lasts; yields what to call after each save.

    Only an end or a stop waits for the copies, and not for long.
    """
    if not ranks.first or plan.config.run.mirror is None:
        yield lambda: None
        return
    base = plan.run.weights_file(plan.base_sha256)
    copier = Copier(
        plan.config.run.mirror, plan.run, attempt, base, lambda line: report({"phase": "mirror", "lines": [line]})
    )
    try:
        yield copier.wake
    except StopRequestedError:
        copier.finish(STOP_WAIT_S)
        raise
    except BaseException:
        copier.finish(wait_s=0)
        raise
    copier.finish()


def make_hooks(
    plan: Plan, learner: Learner, attempt: int, ranks: Ranks, report: Report, saved: Callable[[], None]
) -> Hooks:
    """How the loop saves and reports."""

    def save_here(position: Position) -> None:
        on_first(ranks, lambda: save(plan, learner, attempt, ranks, position))
        saved()

    return Hooks(with_events(report, plan.run.tensorboard_dir, attempt), save_here, attempt)


def save(plan: Plan, learner: Learner, attempt: int, ranks: Ranks, position: Position) -> None:
    """Commits a checkpoint of this position, and what follows from it."""
    check_is_newest(plan, attempt)
    facts = {
        "epoch": position.epoch,
        "config_hash": plan.config_hash,
        "data_fingerprint": plan.fingerprints["data.tiles"],
        "base_sha256": plan.base_sha256,
        "world_size": ranks.world_size,
        "micro_batch": plan.micro_batch,
    }
    commit(plan.run, position.step, attempt, learner.learning.state_dict(), learner.state(position), facts)
    write_history(plan.run, position.history, plan.config.loop.best_metric)
    prune(plan.run, plan.config.loop.keep)


def predict(plan: Plan, data: RunData, learner: Learner, position: Position, ranks: Ranks, hooks: Hooks) -> None:
    """Writes the best checkpoint's predictions for every part that has none of it yet."""
    best = on_first(ranks, lambda: best_good(plan.run, position.history, plan.config.loop.best_metric))
    learner.learning.load_state_dict(read(best)[0])
    for part in data.evaluated():
        if on_first(ranks, partial(predicted_by, plan.run.predictions_file(part))) == best.path.name:
            continue
        logits = evaluate(learner, data.tiles(part), part, plan.config, ranks, hooks.report)
        on_first(ranks, partial(_write_part, plan, data, part, logits, best, hooks.attempt))


def _write_part(
    plan: Plan, data: RunData, part: str, logits: NDArray[np.float32], best: Checkpoint, attempt: int
) -> None:
    """Writes a part's predictions, and first of all that it was looked at."""
    check_is_newest(plan, attempt)
    if part != "val":
        look = {"time": now(), "split": part, "checkpoint": best.path.name, "attempt": attempt}
        append_json_line(plan.run.evaluations_file, {**look, "tiles": len(logits), "by": "training's end"})
    write_predictions(plan.run.predictions_file(part), data.index(part), logits, plan.classes, best.path.name)


def _where() -> Json:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _diverged(plan: Plan, position: Position, error: DivergedError) -> str:
    return (
        f"training diverged at step {position.step} (epoch {position.epoch + 1}): {error}. The checkpoints are from "
        f"before; try a lower optim.lr than {plan.config.optim.lr:g}, or loop.precision: fp32"
    )
