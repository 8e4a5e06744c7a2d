"""What one worker does, from the first file it reads to the last it writes. No Ray here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.calibration import calibrate, stain_of
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
from trainer.ema import Ema, evaluated
from trainer.errors import RunError, UsageError, is_out_of_memory
from trainer.loop import (
    Hooks,
    Learner,
    Outcome,
    Position,
    StopRequestedError,
    Training,
    Trunk,
    evaluate,
    fit,
)
from trainer.model import build, cut, set_training
from trainer.optim import make_optimizer, make_schedule
from trainer.plan import Plan, as_begun, halve_micro_batch
from trainer.predictions import predicted_by, write_predictions
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir, append_json_line, now, write_json
from trainer.scale import unseen_gpus
from trainer.tensorboard import with_events
from trainer.tiles.loader import TileSet
from trainer.tiles.order import Indices
from trainer.tiles.stain import Stain
from trainer.wording import counted

T = TypeVar("T")
Report = Callable[[Json], bool]
WARM_UP_PASSES = 2
OPENING_LIMIT_S = 3600.0
"""In which every node must have its data: some copy it to their own disk first, and some disks are slow."""
STOP_WAIT_S = 10.0
"""For the mirror, when a stop was asked for: a batch system's grace may be half a minute."""


@dataclass(frozen=True)
class Start:
    """Where an attempt begins."""

    attempt: int
    checkpoint: Checkpoint | None


def work(plan: Plan, ranks: Ranks, report: Report) -> Outcome:
    """Trains from wherever the run is to its end, and writes what its best checkpoint says of tiles."""
    (outcome,) = work_together([plan], ranks, report)
    return outcome


def work_begun(plans: Sequence[Plan], ranks: Ranks, report: Report) -> list[Outcome]:
    """`work_together` on what the runs have come to since their plans were made."""
    return work_together([as_begun(plan) for plan in plans], ranks, report)


def work_together(plans: Sequence[Plan], ranks: Ranks, report: Report) -> list[Outcome]:
    """`work` for runs that differ in their heads alone, on one trunk: each ends as if it had been alone.

    Args:
        plans: the runs, which differ in `optim` alone; one of any depth, or several of depth 0.
        ranks: the workers.
        report: is called on rank 0 with what goes on, under the name of a `run` where it is about one of them; answers
            whether to stop.
    """
    plan, stopped = plans[0], False
    if plan.scale.gpu and ranks.device.type != "cuda":
        return [Outcome("failed", f"{socket.gethostname()}: {unseen_gpus()}") for _ in plans]
    torch.set_num_threads(plan.scale.threads)
    torch.backends.cudnn.allow_tf32 = plan.precision != "fp32"
    begun: list[Training | Outcome] = []
    try:
        data = on_all(ranks, lambda: open_here(plan))
        trunk, learners = make_learners(plans, data, ranks)
        with ExitStack() as mirrors:
            for one, learner in zip(plans, learners, strict=True):
                begun.append(begin(one, learner, data, ranks, report, mirrors))
            runs = [
                (one, training) for one, training in zip(plans, begun, strict=True) if isinstance(training, Training)
            ]
            fit(trunk, [training for _, training in runs], data.tiles("train"), data.tiles("val"), ranks, report)
            predict(trunk, [pair for pair in runs if pair[1].ended is None], data, ranks, report)
    except StopRequestedError:
        stopped = True
    except (UsageError, RunError) as error:
        return [Outcome("failed", str(error)) for _ in plans]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return take_less(plans, ranks, report)
    return [one if isinstance(one, Outcome) else _outcome(one, stopped) for one in begun]


def _outcome(training: Training, stopped: bool) -> Outcome:
    if training.ended is None and stopped:
        return Outcome("stopped", f"at step {training.position.step}, with a good checkpoint")
    return training.ended or Outcome("done")


def work_alone(plans: Sequence[Plan], report: Report) -> list[Outcome]:
    """`work_together` as the only worker, in this process; where memory runs out, again with fewer tiles at once."""
    ranks = Ranks(device=torch.device("cuda" if plans[0].scale.gpu else "cpu"))
    while (outcomes := work_begun(plans, ranks, report))[0].status == "short of memory":
        torch.cuda.empty_cache()
    return outcomes


def take_less(plans: Sequence[Plan], ranks: Ranks, report: Report) -> list[Outcome]:
    """Has the next start take fewer tiles at once.

    Raises:
        RuntimeError: where other ranks wait for this one, so that all of them are started again.
    """
    outcomes = []
    for plan in plans:
        try:
            note = halve_micro_batch(plan)
            report({"phase": "note", "run": plan.run.name, "lines": [note]})
            outcomes.append(Outcome("short of memory", note))
        except RunError as error:
            outcomes.append(Outcome("failed", str(error)))
    if ranks.world_size > 1:
        raise RuntimeError(outcomes[0].message)
    return outcomes


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
    """The run's data, as this node reads it.

    Raises:
        RunError: where the run's directory, or a store, cannot be seen from here.
    """
    if not plan.run.identity_file.exists():
        raise RunError(f"run.storage: {plan.run.path} is not there; name a folder that all nodes see")
    data = open_data(plan.config, plan.run.split_file)
    return data if plan.config.data.stage is None else data.staged(plan.config.data.stage)


def make_learners(plans: Sequence[Plan], data: RunData, ranks: Ranks) -> tuple[Trunk, list[Learner]]:
    """The network at its starting weights, cut at the unfrozen depth: its trunk, and what learns, once for each run."""
    plan, train = plans[0], data.tiles("train")
    model = build(len(plan.classes), plan.config.run.seed)
    model.load_state_dict(read_base(plan.run, plan.base_sha256), strict=False)
    model.to(ranks.device).to(memory_format=torch.channels_last)
    frozen, learning = cut(model, plan.config.model.unfrozen_depth)
    trunk = Trunk(frozen, plan.precision, plan.micro_batch)
    networks = [learning, *(deepcopy(learning) for _ in plans[1:])]
    learners = [make_learner(one, network, train, ranks) for one, network in zip(plans, networks, strict=True)]
    if ranks.world_size > 1:
        for learner in learners:
            settle(trunk, learner, plan, ranks)
    return trunk, learners


def make_learner(plan: Plan, learning: nn.Sequential, train: TileSet, ranks: Ranks) -> Learner:
    """What learns, with all that makes it learn."""
    optim = plan.config.optim
    if plan.norm == "sync":
        learning = nn.SyncBatchNorm.convert_sync_batchnorm(learning)  # type: ignore[no-untyped-call]
    ema = Ema(learning, optim.ema) if optim.ema else None
    forward = _distributed(learning, ranks)
    optimizer = make_optimizer(learning, optim)
    return Learner(
        learning,
        forward,
        optimizer,
        make_schedule(optimizer, plan.config, len(train)),
        plan.norm,
        plan.precision,
        class_weights(plan, train).to(ranks.device),
        optim.label_smoothing,
        optim.clip_norm,
        ema,
    )


def class_weights(plan: Plan, train: TileSet) -> torch.Tensor:
    """(classes,) weights in the loss: ones, or inversely proportional to a class's training tiles."""
    counts = torch.bincount(torch.from_numpy(train.labels), minlength=len(plan.classes))
    if plan.config.optim.class_weights == "none":
        return torch.ones(len(counts))
    return counts.sum() / (len(counts) * counts)


def _distributed(learning: nn.Sequential, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return learning
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(learning, device_ids=devices, gradient_as_bucket_view=True)


def settle(trunk: Trunk, learner: Learner, plan: Plan, ranks: Ranks) -> None:
    """Lets DistributedDataParallel arrange its buckets, by passes that change nothing.

    It rearranges them after the first backward pass, and sums of three and more ranks depend on the arrangement in
    the last bit. Settled before any state is loaded, an attempt that resumes sums as one that never stopped.
    """
    before = {name: tensor.clone() for name, tensor in learner.learning.state_dict().items()}
    size = plan.config.augment.input_size
    images = torch.zeros((2, 3, size, size), device=ranks.device)
    set_training(learner.learning, learner.norm)
    for _ in range(WARM_UP_PASSES):
        torch.autograd.backward(learner.logits(trunk.features(images), learner.forward).sum() * 0.0)
    learner.optimizer.zero_grad()
    learner.learning.load_state_dict(before)


def begin(
    plan: Plan, learner: Learner, data: RunData, ranks: Ranks, report: Report, mirrors: ExitStack
) -> Training | Outcome:
    """Goes on from wherever the run is, in a new attempt; or says why it cannot."""

    def report_named(message: Json) -> bool:
        return report({"run": plan.run.name, **message})

    try:
        start = on_first(ranks, lambda: claim(plan, ranks, report_named))
        position = resume(learner, start)
        on_first(ranks, lambda: write_history(plan.run, position.history, plan.config.loop.best_metric))
    except RunError as error:
        return Outcome("failed", str(error))
    saved = mirrors.enter_context(mirrored(plan, start.attempt, ranks, report_named))
    hooks = make_hooks(plan, learner, data, start.attempt, ranks, report_named, saved)
    return Training(learner, plan.config, position, hooks)


def claim(plan: Plan, ranks: Ranks, report: Report) -> Start:
    """Finds where the run goes on and claims the next attempt, so that no earlier one can go on beside it."""
    while True:
        # Numbered before the search: whoever claims this number meanwhile has searched as well as we have.
        attempt = plan.run.newest_attempt() + 1
        checkpoint, said = resume_point(plan.run)
        step = checkpoint.step if checkpoint else 0
        record = {"resumed_step": step, "workers": ranks.world_size, "started": now(), "said": said, **_where()}
        if plan.run.claim_attempt(attempt, record):
            clear_up(plan.run)
            begins = f"goes on from {checkpoint.path.name}" if checkpoint else "begins"
            on = f"on {counted(ranks.world_size, 'worker')}"
            report({"phase": "start", "lines": [*said, f"attempt {attempt} {begins}, {on}"]})
            return Start(attempt, checkpoint)


def clear_up(run: RunDir) -> None:
    """Removes what earlier attempts were writing when they were killed, and why one of them diverged."""
    folders = (run.path, run.attempts_dir, run.predictions_dir)
    unfinished = [file for folder in folders for file in folder.glob(".*.tmp")]
    asked = f".{run.lock_file.name}."  # of a start that is being refused just now
    for file in (run.diverged_file, *(file for file in unfinished if not file.name.startswith(asked))):
        with suppress(OSError):
            file.unlink()


def check_is_newest(plan: Plan, attempt: int) -> None:
    """Nothing is written by an attempt that has lost its run to a later one, or from under which its storage has gone.

    Raises:
        RunError: where that is so.
    """
    if (newest := plan.run.newest_attempt()) > attempt:
        raise RunError(f"attempt {newest} has taken run {plan.run.name} over from attempt {attempt}, which ends here")
    if newest < attempt:  # what is there now may be the empty folder on which the storage was mounted
        raise RunError(
            f"{plan.run.attempt_file(attempt)}: is gone, and so may be the storage; see to it: the same command then "
            "goes on"
        )


def resume(learner: Learner, start: Start) -> Position:
    """Loads the checkpoint to start from, if there is one."""
    if start.checkpoint is None:
        return Position()
    tensors, state = read(start.checkpoint)
    learner.load(tensors, state)
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
    plan: Plan,
    learner: Learner,
    data: RunData,
    attempt: int,
    ranks: Ranks,
    report: Report,
    saved: Callable[[], None],
) -> Hooks:
    """How the loop saves and reports."""

    def save_here(position: Position) -> None:
        on_first(ranks, lambda: save(plan, learner, attempt, ranks, position))
        saved()

    reported = with_events(report, plan.run.tensorboard_dir, attempt)
    return Hooks(reported, save_here, attempt, partial(list_tiles, plan, data, attempt))


def list_tiles(plan: Plan, data: RunData, attempt: int, position: Position, why: str, members: Indices) -> str:
    """Keeps which training tiles were learned from when training diverged, for whoever looks for the reason."""
    tiles = data.index("train").iloc[members][["tile_id", "path", "label"]].to_dict("records")
    facts = {"attempt": attempt, "epoch": position.epoch + 1, "step": position.step, "why": why}
    check_is_newest(plan, attempt)
    try:
        write_json(plan.run.diverged_file, {**facts, "tiles": tiles})
    except OSError as error:  # that training diverged matters more
        return f"The {counted(len(tiles), 'tile')} that it learned from last cannot be listed ({error.strerror}). "
    return f"The {counted(len(tiles), 'tile')} that it learned from last are listed in {plan.run.diverged_file}. "


def save(plan: Plan, learner: Learner, attempt: int, ranks: Ranks, position: Position) -> None:
    """Commits a checkpoint of this position, and what follows from it.

    An attempt that was stopped in the midst of one of these acts, and lost the run, does not begin the next.
    """
    facts = {
        "epoch": position.epoch,
        "config_hash": plan.config_hash,
        "data_fingerprint": plan.fingerprints["data.tiles"],
        "base_sha256": plan.base_sha256,
        "world_size": ranks.world_size,
        "micro_batch": plan.micro_batch,
    }
    check_is_newest(plan, attempt)
    try:
        commit(plan.run, position.step, attempt, learner.tensors(), learner.state(position), facts)
    except OSError:
        check_is_newest(plan, attempt)  # which may be why
        raise
    check_is_newest(plan, attempt)
    write_history(plan.run, position.history, plan.config.loop.best_metric)
    check_is_newest(plan, attempt)
    prune(plan.run, plan.config.loop.keep)


def predict(trunk: Trunk, runs: Sequence[tuple[Plan, Training]], data: RunData, ranks: Ranks, report: Report) -> None:
    """Writes the predictions of each run's best checkpoint for every part that has none of it yet; calibrates it."""
    bests = []
    for plan, training in runs:
        with training.failing_alone():
            history, metric = training.position.history, plan.config.loop.best_metric
            best = on_first(ranks, partial(best_good, plan.run, history, metric))
            training.learner.evaluated.load_state_dict(evaluated(read(best)[0]))
            bests.append((plan, training, best))
    for part in data.evaluated():
        due = [
            (plan, training, best)
            for plan, training, best in bests
            if on_first(ranks, partial(predicted_by, plan.run.predictions_file(part))) != best.path.name
        ]
        if not due:
            continue
        learners = [training.learner for _, training, _ in due]
        found = evaluate(trunk, learners, data.tiles(part), part, due[0][0].config, ranks, report)
        for (plan, training, best), logits in zip(due, found, strict=True):
            with training.failing_alone():
                on_first(ranks, partial(_write_part, plan, data, part, logits, best, training.hooks.attempt))
    stain = cache(lambda: stain_of(data.tiles("train")))  # all runs have the same tiles
    for plan, training, _ in bests:
        if training.ended is None:
            with training.failing_alone():
                on_first(ranks, partial(_calibrate, plan, stain, training.hooks.attempt))


def _write_part(
    plan: Plan, data: RunData, part: str, logits: NDArray[np.float32], best: Checkpoint, attempt: int
) -> None:
    """Writes a part's predictions, and first of all that it was looked at."""
    check_is_newest(plan, attempt)
    if part != "val":
        look = {"time": now(), "split": part, "checkpoint": best.path.name, "attempt": attempt}
        append_json_line(plan.run.evaluations_file, {**look, "tiles": len(logits), "by": "training's end"})
    write_predictions(plan.run.predictions_file(part), data.index(part), logits, plan.classes, best.path.name)


def _calibrate(plan: Plan, stain: Callable[[], Stain], attempt: int) -> None:
    """The last act: a run whose best checkpoint is calibrated is finished."""
    check_is_newest(plan, attempt)
    calibrate(plan.run, stain())


def _where() -> Json:
    return {"host": socket.gethostname(), "pid": os.getpid()}
