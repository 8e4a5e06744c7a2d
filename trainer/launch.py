"""One run, from the command to its exit code: over Ray Train, or in this process under a debugger."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cluster.ray_cluster import Resources, connect, join
from trainer.checkpoint import listed
from trainer.config import Config, dump
from trainer.copier import Copier
from trainer.data import RunData
from trainer.display import Display
from trainer.errors import RunError, UsageError
from trainer.job import job_id
from trainer.lock import RunLock
from trainer.mirror import Mirror, UnreachableError
from trainer.plan import Plan, ema_warnings, is_finished, make_plan, trainable, write_run
from trainer.progress import say
from trainer.ranks import Ranks
from trainer.remote import Board, on_worker
from trainer.rundir import Json, RunDir, read_json, write_json
from trainer.scale import Machine, gpu_has_bf16, this_machine
from trainer.stop import StopSignals
from trainer.worker import Outcome, work

DONE, FAILED, STOPPED = 0, 1, 75
MAX_FAILURES = 3
MAX_FRUITLESS = 3
POLL_S = 0.2
GPU_FREE_S = 300.0


def train(config: Config, stop: StopSignals, *, fresh: bool = False, debug: bool = False) -> int:
    """Trains a run to its end, or on from where it was; returns the exit code.

    0: done (also where it was done already). 1: failed. 75: stopped on request; the same command goes on.

    Raises:
        UsageError: where the configuration does not fit the data, the machine, or the run of this name.
        RunError: where the run is being trained by another process, or its files are damaged.
    """
    if debug:
        return _train(_alone(config), this_machine(), stop, fresh=fresh, debug=True)
    with join() as cluster:
        return _train(config, _machine(cluster), stop, fresh=fresh, debug=False)


def describe(config: Config) -> str:
    """What `train` would do: the resolved configuration, the split by class, what learns, what a checkpoint takes."""
    with join() as cluster:
        plan, data, _ = make_plan(config, _machine(cluster))
    parameters, size = trainable(plan)
    counts = data.counts()
    counts.loc["all"] = counts.sum()
    return "\n".join(
        [
            dump(plan.config),
            counts.to_string(),
            "",
            _headline(plan, data),
            f"{parameters:,} parameters learn; a checkpoint takes about {size / 1e6:,.0f} MB",
        ]
    )


def _alone(config: Config) -> Config:
    """One worker with all cores of this machine: what a debugger can follow."""
    scale = config.scale.model_copy(update={"workers": 1, "cpus_per_worker": "auto"})
    return config.model_copy(update={"scale": scale})


def _machine(cluster: Resources | None) -> Machine:
    """What the run can have: the cluster that was joined, else this machine."""
    if cluster is None:
        return this_machine()
    return Machine(cluster.nodes, cluster.cores, cluster.gpus, cluster=True, gpus_have_bf16=_gpus_have_bf16)


def _gpus_have_bf16() -> bool:
    """Asks a worker where this node has no GPU itself, such as a Ray cluster's head; they are taken to be alike.

    Raises:
        RunError: where none comes free.
    """
    if torch.cuda.is_available():
        return gpu_has_bf16()
    import ray

    try:
        return bool(ray.get(ray.remote(num_cpus=0, num_gpus=1)(gpu_has_bf16).remote(), timeout=GPU_FREE_S))
    except ray.exceptions.GetTimeoutError:
        raise RunError(f"no GPU of the cluster has come free in {GPU_FREE_S:.0f} s") from None


def _train(config: Config, machine: Machine, stop: StopSignals, *, fresh: bool, debug: bool) -> int:
    console = Console()
    plan, data, base = make_plan(config, machine, fresh=fresh)
    mirror = _reach_mirror(plan, console, fresh=plan.starts_over)
    if plan.starts_over:
        _move_aside(plan.run, mirror, console)
    elif mirror and _brought(mirror, console):
        plan, data, base = make_plan(config, machine)
    _make_directory(plan.run.path)
    with RunLock(plan.run):
        write_run(plan, data, base)
        if is_finished(plan, data):
            _complete_mirror(plan, mirror, console)
            say(f"run {plan.run.name} is finished: nothing to do\n{_result(plan)}", console)
            return DONE
        say(_headline(plan, data), console)
        before = _newest_step(plan.run)
        with Display(console, live=not debug) as display:
            outcome = _in_process(plan, stop, display) if debug else _on_ray(plan, stop, display)
    if outcome.status == "stopped":
        _check_progress(plan, before)
    return _conclude(plan, outcome, console)


def _in_process(plan: Plan, stop: StopSignals, display: Display) -> Outcome:
    def report(message: Json) -> bool:
        display.show(message)
        if stop.asked():
            display.stopping()
        return stop.asked()

    return work(plan, Ranks(device=torch.device("cuda" if plan.scale.gpu else "cpu")), report)


def _on_ray(plan: Plan, stop: StopSignals, display: Display) -> Outcome:
    scale = plan.scale
    display.waiting("starting Ray")
    with connect(cpus=scale.workers * scale.threads, gpus=scale.workers * scale.gpus_per_worker if scale.gpu else 0):
        if stop.asked():
            return Outcome("stopped", "before its first step")
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node, so that no other's loss takes it away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        display.waiting(f"starting {plan.scale}")
        ended: list[Outcome] = []
        # Ray Train takes INT over when it runs on the main thread, so it gets another.
        fit = threading.Thread(target=lambda: ended.append(_outcome(plan, board)), name="ray-train", daemon=True)
        fit.start()
        try:
            while fit.is_alive():
                fit.join(POLL_S)
                if stop.asked():
                    display.stopping()
                for message in ray.get(board.exchange.remote(stop.asked())):
                    display.show(message)
        except ray.exceptions.RayError as error:
            return _ray_ended(error)
        finally:
            shutil.rmtree(plan.run.ray_dir, ignore_errors=True)
    return ended[0]


def _outcome(plan: Plan, board: Any) -> Outcome:
    """How Ray Train ended, whatever it did. Failures count since the last progress: a long run may see many."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    while True:
        before = _newest_step(plan.run)
        try:
            return _fit(plan, board)
        except WorkerGroupError as error:
            if _newest_step(plan.run) == before:
                return Outcome("failed", f"workers failed {MAX_FAILURES + 1} times, the last time with: {error}")
        except Exception as error:  # this is the end of a thread: nobody else would say what happened
            return _ray_ended(error)


def _ray_ended(error: Exception) -> Outcome:
    return Outcome("failed", f"Ray ended in the middle of the run ({error}); the same command goes on")


def _fit(plan: Plan, board: Any) -> Outcome:
    """Runs `work` on every worker of a Ray Train group, started again where one dies; rank 0's outcome."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scale, timeout_s = plan.scale, plan.config.scale.timeout_s
    if scale.least < scale.workers:
        # A group waits this long for the node that it has lost before it goes on with fewer; Ray would wait a minute.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    trainer = TorchTrainer(
        on_worker,
        train_loop_config={"plan": pickle.dumps(plan), "umask": _umask(), "board": board},
        torch_config=TorchConfig(backend="nccl" if scale.gpu else "gloo", timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=scale.workers if scale.least == scale.workers else (scale.least, scale.workers),
            use_gpu=scale.gpu,
            resources_per_worker={"CPU": scale.threads, **({"GPU": scale.gpus_per_worker} if scale.gpu else {})},
            placement_strategy="PACK" if scale.gpu else "SPREAD",
        ),
        # Ray's own state is disposable: ours are the checkpoints. So its run has a new name each time.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(plan.run.ray_dir),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome = trainer.fit().return_value
    assert isinstance(outcome, Outcome), "every worker answers with an outcome"
    return outcome


def _umask() -> int:
    """This process's, which the system only tells in exchange for another."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _conclude(plan: Plan, outcome: Outcome, console: Console) -> int:
    if outcome.status == "failed":
        raise RunError(outcome.message)
    if outcome.status == "stopped":
        say(f"stopped {outcome.message}: the same command goes on from there", console)
        return STOPPED
    say(_result(plan), console)
    return DONE


def _check_progress(plan: Plan, before: int) -> None:
    """Ends a batch job that is requeued again and again and stopped each time before it has taken a step.

    Raises:
        RunError: the third time in a row.
    """
    file = plan.run.fruitless_file
    if job_id() is None or _newest_step(plan.run) > before:
        file.unlink(missing_ok=True)
        return
    times = 1 + (read_json(file)["times"] if file.exists() else 0)
    write_json(file, {"times": times})
    if times >= MAX_FRUITLESS:
        file.unlink()
        raise RunError(
            f"stopped {times} times in a row before a single step, and would be requeued for ever; give the job more "
            "time (sbatch --time, or a later --signal)"
        )


def _newest_step(run: RunDir) -> int:
    """Of all checkpoints, 0 where there is none."""
    return max((checkpoint.step for checkpoint in listed(run)), default=0)


def _headline(plan: Plan, data: RunData) -> str:
    counts = data.counts().sum()
    parts = ", ".join(f"{tiles:,} {part}" for part, tiles in counts.items())
    optimistic = " (tile-level split: optimistic)" if plan.config.data.split == "random" else ""
    what = (
        f"run {plan.run.name}: {parts} tiles, {len(plan.classes)} classes{optimistic}; depth "
        f"{plan.config.model.unfrozen_depth}, batch {plan.config.loop.batch_size}, {plan.precision}; {plan.scale}"
    )
    return "\n".join([what, *data.warnings(), *ema_warnings(plan, int(counts["train"]))])


def _result(plan: Plan) -> str:
    best = read_json(plan.run.best_file)
    predictions, run = _near(plan.run.predictions_dir), _near(plan.run.path)
    return (
        f"best epoch {best['epoch']}: {best['metric']} {best['value']:.4f}; predictions in {predictions}\n"
        f"next: python -m analysis report {run} --out reports/{plan.run.name}"
    )


def _near(path: Path) -> Path:
    """A path as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"run.storage: {path} cannot be made ({error.strerror}); name a folder to write in") from None


def _move_aside(run: RunDir, mirror: Mirror | None, console: Console) -> None:
    """Keeps the old run of this name under another, here and in the mirror."""
    aside = run.path.with_name(f"{run.name}.{time.strftime('%Y%m%dT%H%M%S')}")
    if run.path.exists():
        with RunLock(run):
            pass  # refuses where it is being trained
        run.path.rename(aside)
        say(f"the old run {run.name} is now {aside}", console)
    if mirror:
        mirror.move_aside(aside.name)


def _reach_mirror(plan: Plan, console: Console, *, fresh: bool) -> Mirror | None:
    """The run's mirror; None where it has none, or none that answers now and the run is here to go on without."""
    if plan.config.run.mirror is None:
        return None
    try:
        return Mirror.reached(plan.config.run.mirror, plan.run)
    except UnreachableError as error:
        if fresh or not plan.run.identity_file.exists():
            raise
        say(f"{error}\ntraining goes on from {_near(plan.run.path)}", console)
        return None


def _brought(mirror: Mirror, console: Console) -> bool:
    """Whether the run was not here and has been brought from its mirror."""
    if mirror.run.identity_file.exists():
        mirror.check_history()
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
