"""Everything about a run that can be decided, and refused, before work starts."""

from __future__ import annotations

import math
import platform
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.calibration import Calibration
from trainer.checkpoint import store_base
from trainer.config import IDENTITY_DEFAULTS, Config, deviations, dump, identity
from trainer.data import RunData, open_data, stage_folder, write_split
from trainer.durable import sync, write_atomic
from trainer.errors import Problems, RunError, UsageError
from trainer.identity import check_same, derived_name, digest
from trainer.job import is_requeued_from, job_id
from trainer.model import build, cut, resolve_norm
from trainer.predictions import predicted_by
from trainer.rundir import RESTORE, Json, RunDir, SearchDir, Workplace, now, read_json, write_json
from trainer.scale import Machine, Scale, resolve
from trainer.stall import answered_within
from trainer.strict_yaml import read_yaml
from trainer.tiles.order import batch_bounds
from trainer.weights import Base, load_base

PACKAGES = ("torch", "torchvision", "ray", "numpy", "pandas", "scikit-learn", "pillow", "safetensors")
CPU_MICRO_BATCH = 32
GPU_MICRO_BATCH = 256
RAY_COPIES = "working_dir_files"  # where a node of Ray unpacks the working directories of jobs
TRUNK_STRIDE = 32  # px of input to a cell of layer4's map
MOST_OF_START = 0.1  # that may be left in averaged weights without a warning


@dataclass(frozen=True)
class Plan:
    """A run, resolved for the machine that it starts on."""

    config: Config
    run: RunDir
    classes: tuple[str, ...]
    class_names: Json
    fingerprints: dict[str, str]
    base_sha256: str
    scale: Scale
    norm: str
    precision: str
    micro_batch: int
    starts_over: bool

    @property
    def identity(self) -> Json:
        """What must agree when the run is resumed, by dotted key."""
        return {**identity(self.config), **self._learned_from}

    @property
    def config_hash(self) -> str:
        """A digest of the identity, without options at their defaults: further options leave it as it is."""
        return digest({**deviations(self.config), **self._learned_from})

    @property
    def _learned_from(self) -> Json:
        return {**self.fingerprints, "model.weights": self.base_sha256, "classes": list(self.classes)}


def make_plan(
    config: Config, machine: Machine, *, fresh: bool = False, place: RunDir | None = None, base: Base | None = None
) -> tuple[Plan, RunData, Base]:
    """Resolves what is `auto` for this machine, opens the data and the starting weights, and checks that it all fits.

    What a run that has begun resolved is kept, unless it is to start over (`fresh`). A batch job starts over once:
    when it is requeued, it goes on with what it has begun.

    Args:
        config: the run.
        machine: on what.
        fresh: whether it is to start over.
        place: where it is kept, where that is not `run.storage`/`run.name`: the trials of a search.
        base: the weights that `model.weights` names, where they have been read already.

    Raises:
        UsageError: naming what does not fit and the remedy.
    """
    problems = Problems()
    with problems.kept():
        refuse_lost(config.run.storage, "run.storage")
    with answered_within(config.scale.timeout_s, config.run.storage):
        config.run.storage.exists()  # all that follows would wait for it
    with problems.kept():
        base = base or load_base(config.model.weights, config.run.seed)
    with problems.kept():
        data = open_data(config)
    with problems.kept():
        if config.data.stage is not None and not machine.cluster:  # a cluster's nodes have variables of their own
            stage_folder(config.data.stage)
    with problems.kept("data.class_names"):
        class_names = _class_names(config.data.class_names)
    with problems.kept():
        scale = resolve(config.scale, machine)
        norm = _norm(config, scale)
    problems.check()
    drawn = {**data.fingerprints(), **deviations(config), "model.weights": base.sha256}
    name = config.run.name or derived_name(config.data.tiles, f"depth{config.model.unfrozen_depth}", drawn)
    run = place or RunDir(config.run.storage / name)
    if place is None and SearchDir(run.path).exists():
        raise UsageError(f"run.name: {name} is the name of a search in {config.run.storage}; give the run another")
    resolved = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    starts_over = fresh and not _is_of_this_job(run)
    begun = run.read_identity() if run.identity_file.exists() and not starts_over else {}
    precision = kept(begun, "precision", config, run) or _precision(config, scale, machine)
    micro_batch = kept(begun, "micro_batch", config, run) or _micro_batch(config, scale)
    plan = Plan(
        resolved,
        run,
        data.classes,
        class_names,
        data.fingerprints(),
        base.sha256,
        scale,
        norm,
        precision,
        micro_batch,
        starts_over,
    )
    _check_batches(plan, int((data.splits == "train").sum()))
    return plan, data, base


def _is_of_this_job(run: RunDir) -> bool:
    """Whether an earlier start of this very job has begun it."""
    try:
        return run.identity_file.exists() and is_requeued_from(run.read_identity().get("job"))
    except RunError:  # damaged: a reason to start over
        return False


def write_run(plan: Plan, data: RunData, base: Base) -> None:
    """Creates the run directory, or refuses one that is another run's.

    Raises:
        UsageError: naming the fields in which the run that has this name differs.
        RunError: where nothing says any more what the run is that has begun there.
    """
    if plan.run.identity_file.exists():
        known = plan.run.read_identity()["identity"]
        check_same(plan.run, known, plan.identity, IDENTITY_DEFAULTS)
    elif plan.run.has_begun():
        raise RunError(f"{plan.run.identity_file}: is missing, and a run has begun there; {RESTORE}")
    else:
        plan.run.path.mkdir(parents=True, exist_ok=True)
        sync(plan.run.path.parent)
        write_split(plan.run.split_file, data)
        write_json(plan.run.identity_file, _description(plan, data))
    write_atomic(plan.run.config_file, dump(plan.config).encode())
    store_base(plan.run, base.sha256, base.data)


def halve_micro_batch(plan: Plan) -> str:
    """After memory ran out: from the next start on, the run takes half as many tiles through the network at once.

    Batches stay as they are. Every worker that ran out may ask for it, and it is done once.

    Returns:
        What there is to say.

    Raises:
        RunError: where a half is too little.
    """
    micro_batch = plan.micro_batch // 2
    if micro_batch < 2:
        raise RunError(
            f"out of memory with {plan.micro_batch} tiles at once, and fewer there cannot be; lower augment.input_size "
            "or model.unfrozen_depth, or give a worker more memory"
        )
    described = plan.run.read_identity()
    first = {"first_micro_batch": described["micro_batch"]}  # which may be asked for by name
    write_json(plan.run.identity_file, {**first, **described, "micro_batch": micro_batch})
    return f"out of memory with {plan.micro_batch} tiles at once: goes on with {micro_batch}, in the same batches"


def as_begun(plan: Plan) -> Plan:
    """The plan with the micro-batch that the run has come to. Where the run cannot be seen, opening it will say so."""
    if not plan.run.identity_file.exists():
        return plan
    return replace(plan, micro_batch=plan.run.read_identity()["micro_batch"])


def is_finished(plan: Plan, data: RunData) -> bool:
    """Whether every part has the predictions of the best checkpoint, and that is calibrated: training's last act."""
    try:
        best = read_json(plan.run.best_file)
    except RunError:  # missing or damaged: it is made again, of the history in the newest checkpoint
        return False
    parts = [predicted_by(plan.run.predictions_file(part)) for part in data.evaluated()]
    return Calibration.read(best).is_whole and all(part == best["checkpoint"] for part in parts)


def trainable(plan: Plan) -> tuple[int, int]:
    """Parameters that learn, and about how many bytes a checkpoint takes.

    Adam keeps two more numbers for each, SGD one; an average of the weights has everything twice.
    """
    parameters, buffers = _sizes(len(plan.classes), plan.config.model.unfrozen_depth)
    optim = plan.config.optim
    copies = 2 if optim.ema else 1
    return parameters, 4 * (copies * (parameters + buffers) + (1 if optim.name == "sgd" else 2) * parameters)


@cache
def _sizes(classes: int, depth: int) -> tuple[int, int]:
    """Numbers in the parameters, and in the buffers, of what learns."""
    _, learning = cut(build(classes, 0), depth)
    return sum(p.numel() for p in learning.parameters()), sum(b.numel() for b in learning.buffers())


def ema_warnings(config: Config, tiles: int, judged_after: int | None = None) -> list[str]:
    """Says where the average of the weights hardly leaves the starting ones.

    Args:
        config: of the run, or of a search's trials.
        tiles: to train on.
        judged_after: the epochs after which trials may be stopped; None: nothing is judged before the last.
    """
    decay, loop = config.optim.ema, config.loop
    steps = (judged_after or loop.epochs) * len(batch_bounds(tiles, loop.batch_size))
    if (rest := decay**steps) < MOST_OF_START:
        return []
    taken, remedy = "the run takes", "train longer"
    if judged_after:
        taken, remedy = "trials may be stopped after", "raise search.grace_epochs"
    return [
        f"warning: optim.ema: {decay:g} averages over about {1 / (1 - decay):,.0f} steps, and {taken} {steps:,}: "
        f"{rest:.0%} of what is evaluated would still be the starting weights; lower it, or {remedy}"
    ]


def refuse_lost(place: Path, option: str) -> None:
    """Refuses to keep anything in the copy of a working directory that Ray makes for a job, and removes after it."""
    if any(folder.name == RAY_COPIES for folder in place.parents):
        raise UsageError(
            f"{option}: {place} is in the copy of the working directory that Ray made for this job, and is lost with "
            f"it; give an absolute path that all nodes see: --{option.lstrip('-')} /PATH/{place.name}"
        )


def _norm(config: Config, scale: Scale) -> str:
    norm = resolve_norm(config.model.norm, config.model.weights)
    if norm == "sync" and not scale.gpu:
        raise UsageError("model.norm: sync needs GPUs; choose frozen or local")
    return norm


def _precision(config: Config, scale: Scale, machine: Machine) -> str:
    if config.loop.precision != "auto":
        return config.loop.precision
    return "bf16" if (machine.gpus_have_bf16() if scale.gpu else cpu_has_bf16()) else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this machine's processor computes in bf16."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _micro_batch(config: Config, scale: Scale) -> int:
    if config.loop.micro_batch != "auto":
        return config.loop.micro_batch
    share = math.ceil(config.loop.batch_size / scale.workers)
    return max(2, min(share, GPU_MICRO_BATCH if scale.gpu else CPU_MICRO_BATCH))


def kept(begun: Json, option: str, config: Config, place: Workplace) -> Any:
    """What a run or a search that has begun resolved an option of `loop` to; None where it has not begun.

    Raises:
        UsageError: where something else is asked for now.
    """
    known, asked = begun.get(option), getattr(config.loop, option)
    first = begun.get(f"first_{option}", known)
    if known is not None and asked not in ("auto", first, known):
        raise UsageError(
            f"loop.{option}: this {place.KIND} was begun with {first}, and {asked} would make it another; leave it at "
            "auto, give this one another --run.name, or start over with --fresh"
        )
    return known


def _check_batches(plan: Plan, tiles: int) -> None:
    batch_size = plan.config.loop.batch_size
    batches = [end - start for start, end in batch_bounds(tiles, batch_size)]
    if (smallest := min(batches)) < plan.scale.workers:
        raise UsageError(
            f"loop.batch_size: {batch_size} makes batches of {smallest} from {tiles} training tiles, fewer than the "
            f"{plan.scale.workers} workers; raise loop.batch_size or lower scale.workers"
        )
    learns_norm = plan.norm == "local" and plan.config.model.unfrozen_depth > 0
    one_cell = plan.config.augment.input_size <= TRUNK_STRIDE
    if learns_norm and one_cell and min(_smallest_part(batch, plan) for batch in batches) < 2:
        raise UsageError(
            f"loop.batch_size: {batch_size} gives a worker single tiles of {plan.config.augment.input_size} px, from "
            "which BatchNorm cannot learn; raise loop.batch_size or augment.input_size, or set model.norm: frozen"
        )


def _smallest_part(batch: int, plan: Plan) -> int:
    """Fewest tiles that a worker takes through the network at once."""
    parts = math.ceil(math.ceil(batch / plan.scale.workers) / plan.micro_batch)
    return batch // plan.scale.workers // parts


def _description(plan: Plan, data: RunData) -> Json:
    """run.json's content."""
    return {
        "run": plan.run.name,
        "classes": list(plan.classes),
        "class_names": plan.class_names,
        "data": {**data.description(), "split": plan.config.data.split},
        "config_hash": plan.config_hash,
        "identity": plan.identity,
        "precision": plan.precision,
        "micro_batch": plan.micro_batch,
        "norm": plan.norm,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "code": code_version(),
        "job": job_id(),
        "created": now(),
    }


def _class_names(file: Path | None) -> Json:
    if file is None:
        return {}
    names = read_yaml(file)
    if not isinstance(names, dict) or not all(isinstance(entry, dict) for entry in names.values()):
        raise UsageError(f"{file} must hold an entry such as `TUM: {{en: tumour, zh: ...}}` a class")
    return {str(code): entry for code, entry in names.items()}


def code_version() -> str:
    """The commit that runs, with + where files have been changed since; unknown outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
