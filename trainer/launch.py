"""One run, from the command to its exit code: over Ray Train, or in this process under a debugger."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from cluster.ray_cluster import Resources, connect, join, on_a_gpu
from trainer.checkpoint import newest_step
from trainer.config import Config, dump
from trainer.copier import Copier
from trainer.data import RunData
from trainer.display import Display
from trainer.errors import RunError, UsageError
from trainer.fruitless import check_progress
from trainer.group import train_on_group
from trainer.lock import RunLock
from trainer.loop import Outcome
from trainer.mirror import Mirror, UnreachableError
from trainer.plan import Plan, ema_warnings, is_finished, make_plan, trainable, write_run
from trainer.progress import say
from trainer.rundir import Json, RunDir, read_json
from trainer.scale import Machine, Scale, gpu_has_bf16, this_machine
from trainer.stop import StopSignals
from trainer.worker import Report, work_alone

DONE, FAILED, STOPPED = 0, 1, 75
GPU_FREE_S = 300.0


class NotBegunError(Exception):
    """A stop was asked for before any worker has said a word."""


def train(config: Config, stop: StopSignals, *, fresh: bool = False, debug: bool = False) -> int:
    """Trains a run to its end, or on from where it was; returns the exit code.

    0: done (also where it was done already). 1: failed. 75: stopped on request; the same command goes on.

    Raises:
        UsageError: where the configuration does not fit the data, the machine, or the run of this name.
        RunError: where another process trains the run, or takes it over, or its files are damaged.
    """
    if debug:
        return _train(_alone(config), this_machine(), stop, fresh=fresh, debug=True)
    with join() as cluster:
        return _train(config, machine_of(cluster), stop, fresh=fresh, debug=False)


def describe(config: Config, *, fresh: bool) -> str:
    """What `train` would do: the resolved configuration, the split by class, what learns, what a checkpoint takes."""
    with join() as cluster:
        plan, data, _ = make_plan(config, machine_of(cluster), fresh=fresh)
    parameters, size = trainable(plan)
    return "\n".join(
        [
            dump(plan.config),
            tiles_by_class(data),
            "",
            _headline(plan, data),
            f"{parameters:,} parameters learn; a checkpoint takes about {size / 1e6:,.0f} MB",
        ]
    )


def tiles_by_class(data: RunData) -> str:
    """How many there are in each part, as a table."""
    counts = data.counts()
    counts.loc["all"] = counts.sum()
    return counts.to_string()


def _alone(config: Config) -> Config:
    """One worker with all cores of this machine: what a debugger can follow."""
    scale = config.scale.model_copy(update={"workers": 1, "cpus_per_worker": "auto"})
    return config.model_copy(update={"scale": scale})


def machine_of(cluster: Resources | None) -> Machine:
    """What a run can have: the cluster that was joined, else this machine."""
    if cluster is None:
        return this_machine()
    if not cluster.each:
        raise RunError("the cluster has no node to work on now: see `ray status`")
    return Machine(cluster.each, cluster=True, gpus_have_bf16=_gpus_have_bf16)


def _gpus_have_bf16() -> bool:
    """Asks a worker where this node has no GPU itself, such as a Ray cluster's head; they are taken to be alike.

    Raises:
        RunError: where none comes free.
    """
    if this_machine().gpus:
        return gpu_has_bf16()
    try:
        return on_a_gpu(gpu_has_bf16, GPU_FREE_S)
    except TimeoutError:
        raise RunError(f"no GPU of the cluster has come free in {GPU_FREE_S:.0f} s") from None


def _train(config: Config, machine: Machine, stop: StopSignals, *, fresh: bool, debug: bool) -> int:
    console = Console()
    plan, data, base = make_plan(config, machine, fresh=fresh)
    mirror = _reach_mirror(plan, console, fresh=plan.starts_over)
    if plan.starts_over:
        _move_aside(plan, mirror, console)
    elif mirror and _brought(mirror, console):
        plan, data, base = make_plan(config, machine)
    _make_directory(plan.run.path)
    with RunLock(plan.run, config.scale.timeout_s) as lock:
        write_run(plan, data, base)
        if is_finished(plan, data):
            _complete_mirror(plan, mirror, console)
            say(f"run {plan.run.name} is finished: nothing to do\n{_result(plan)}", console)
            return DONE
        say(_headline(plan, data), console)
        before = _progress(plan.run)
        with Display(console, live=not debug) as display:
            if debug:
                (outcome,) = in_process(partial(work_alone, [plan]), stop, display)
            else:
                (outcome,) = on_ray(partial(train_on_group, [plan]), plan.scale, stop, display, lock)
    if outcome.status == "stopped":
        check_progress(plan.run.fruitless_file, advanced=_progress(plan.run) != before)
    return _conclude(plan, outcome, console)


def in_process(work: Callable[[Report], list[Outcome]], stop: StopSignals, display: Display) -> list[Outcome]:
    """Does a piece of work here; it is given how to report."""

    def report(message: Json) -> bool:
        display.show(message)
        if stop.asked():
            display.stopping()
        return stop.asked()

    return work(report)


def on_ray(
    work: Callable[[Callable[[Json], None], Callable[[], bool]], list[Outcome]],
    scale: Scale,
    stop: StopSignals,
    display: Display,
    lock: RunLock,
) -> list[Outcome]:
    """Does a piece of work on Ray; it is given what shows a message, and what tells whether to stop."""
    display.waiting("starting Ray")
    with connect(cpus=scale.workers * scale.threads, gpus=scale.gpus) as head:
        if stop.asked():
            return [Outcome("stopped", "before its first step")]
        display.waiting(f"starting {scale}")
        begun = False

        def show(message: Json) -> None:
            nonlocal begun
            begun = True
            display.show(message)

        def asked() -> bool:
            head.check()
            lock.check_heartbeat()  # where this node is cut off, Ray may wait for ever, and the run goes on elsewhere
            if stop.asked() and not begun:
                raise NotBegunError
            if stop.asked():
                display.stopping()
            return stop.asked()

        try:
            return work(show, asked)
        except NotBegunError:  # workers that start, or copy tiles, hear nothing; they end with Ray
            return [Outcome("stopped", "before its first step")]


def _conclude(plan: Plan, outcome: Outcome, console: Console) -> int:
    if outcome.status in ("failed", "diverged"):
        raise RunError(outcome.message)
    if outcome.status == "stopped":
        say(f"stopped {outcome.message}: the same command goes on from there", console)
        return STOPPED
    say(_result(plan), console)
    return DONE


def _progress(run: RunDir) -> tuple[int, int]:
    """How far a run is: its newest step, and the predictions that it has."""
    return newest_step(run), len(list(run.predictions_dir.glob("*.parquet")))


def _headline(plan: Plan, data: RunData) -> str:
    counts = data.counts().sum()
    parts = ", ".join(f"{tiles:,} {part}" for part, tiles in counts.items())
    optimistic = " (tile-level split: optimistic)" if plan.config.data.split == "random" else ""
    what = (
        f"run {plan.run.name}: {parts} tiles, {len(plan.classes)} classes{optimistic}; depth "
        f"{plan.config.model.unfrozen_depth}, batch {plan.config.loop.batch_size}, {plan.precision}; {plan.scale}"
    )
    return "\n".join([what, *data.warnings(), *ema_warnings(plan.config, int(counts["train"]))])


def _result(plan: Plan) -> str:
    best = read_json(plan.run.best_file)
    predictions, run = near(plan.run.predictions_dir), near(plan.run.path)
    return (
        f"best epoch {best['epoch']}: {best['metric']} {best['value']:.4f}; predictions in {predictions}\n"
        f"next: python -m analysis report {run} --out reports/{plan.run.name}"
    )


def near(path: Path) -> str:
    """A path as a person here would type it."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"run.storage: {path} cannot be made ({error.strerror}); name a folder to write in") from None


def _move_aside(plan: Plan, mirror: Mirror | None, console: Console) -> None:
    """Keeps the old run of this name under another, here and in the mirror."""
    run = plan.run
    aside = run.path.with_name(f"{run.name}.{time.strftime('%Y%m%dT%H%M%S')}")
    if run.path.exists():
        with RunLock(run, plan.config.scale.timeout_s):
            pass  # refuses where it is being trained
        run.path.rename(aside)
        say(f"the old run {run.name} is now {aside}", console)
    if mirror:
        mirror.move_aside(aside.name)


def _reach_mirror(plan: Plan, console: Console, *, fresh: bool) -> Mirror | None:
    """The run's mirror; None where it has none, or none that answers now and the run is here to go on without."""
    if plan.config.run.mirror is None:
        return None
    is_here = not fresh and plan.run.identity_file.exists()
    try:
        mirror = Mirror.reached(plan.config.run.mirror, plan.run)
        if is_here:
            mirror.check_history()
        return mirror
    except UnreachableError as error:
        if not is_here:
            raise
        say(f"{error}\ntraining goes on from {near(plan.run.path)}", console)
        return None


def _brought(mirror: Mirror, console: Console) -> bool:
    """Whether the run was not here and has been brought from its mirror."""
    if mirror.run.identity_file.exists():
        return False
    _make_directory(mirror.run.path.parent)
    said = mirror.fetch()
    for line in said:
        say(line, console)
    return bool(said)


def _complete_mirror(plan: Plan, mirror: Mirror | None, console: Console) -> None:
    """Copies what the end of the run left to copy."""
    if mirror:
        base = plan.run.weights_file(plan.base_sha256)
        Copier(mirror.uri, plan.run, plan.run.newest_attempt(), base, lambda line: say(line, console)).finish()
