"""Predictions of tiles that a run has not seen, from the command to its exit code: over Ray, or in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from cluster.ray_cluster import join
from trainer.config import ScaleSection
from trainer.data import read_split
from trainer.display import PredictionDisplay
from trainer.errors import RunError, UsageError
from trainer.group import GroupTask, work_on_group
from trainer.identity import digest
from trainer.launch import DONE, STOPPED, in_process, machine_of, near, on_ray
from trainer.lock import RunLock
from trainer.loop import Outcome, StopRequestedError
from trainer.new_tiles import (
    Source,
    check_class_map,
    describe,
    labelled,
    look_at,
    open_store,
    stain_differences,
    stain_warnings,
    window,
)
from trainer.plan import code_version, cpu_has_bf16, refuse_lost
from trainer.predict_worker import PredictionTask, assemble, predict_together
from trainer.predictions import facts_of, write_predictions
from trainer.progress import say
from trainer.ranks import Ranks
from trainer.rundir import Json, PartsDir, append_json_line, now, read_json, write_json
from trainer.scale import Machine, Scale, resolve, this_machine
from trainer.stop import StopSignals
from trainer.temperature import softmax
from trainer.tiles.meta import REJECTED
from trainer.tiles.nonorm import as_twin
from trainer.tiles.stain import Difference
from trainer.tiles.store import TileStore
from trainer.trained import TrainedRun, open_trained
from trainer.wording import counted, joined
from trainer.worker import Report

COMES_FROM = "prediction"
"""The key of the schema's metadata that says, as JSON, what predictions come from."""


@dataclass(frozen=True)
class Request:
    """What is asked for, as `python -m trainer predict --help` says it."""

    run: Path
    tiles: Path
    out: Path
    mpp: float | None = None
    resample: bool = False
    class_map: Mapping[str, str] = field(default_factory=dict)
    scale: ScaleSection = field(default_factory=ScaleSection)


@dataclass(frozen=True)
class Made:
    """What is known once the tiles are there: their index with the run's classes, and how their stain differs."""

    source: Source
    store: TileStore
    index: pd.DataFrame
    stain: list[Difference]
    said: list[str]


def predict(request: Request, stop: StopSignals, *, debug: bool = False) -> int:
    """Writes what a run's best checkpoint says of tiles, or goes on with it; returns the exit code.

    0: done (also where it was done already). 75: stopped on request; the same command goes on.

    Raises:
        UsageError: where run and tiles do not go together, or the output is another's.
        RunError: where it failed, another process makes it, or files are damaged.
    """
    if debug:
        alone = request.scale.model_copy(update={"workers": 1, "cpus_per_worker": "auto"})
        return _predict(replace(request, scale=alone), this_machine(), stop, debug=True)
    with join() as cluster:
        return _predict(request, machine_of(cluster), stop, debug=False)


def _predict(request: Request, machine: Machine, stop: StopSignals, *, debug: bool) -> int:
    console, out = Console(), request.out.absolute()
    trained = open_trained(request.run)
    _check_place(out, trained)
    source = look_at(request.tiles, request.mpp)
    check_class_map(request.class_map, source, trained)
    parts, comes_from = PartsDir.of(out), _comes_from(trained, source, request)
    if _is_there(out, comes_from):
        shutil.rmtree(parts.path, ignore_errors=True)
        say(f"{near(out)} is there already, of the same run and tiles: nothing to do", console)
        return DONE
    if source.tile_size != (0, 0):  # else no image can be read, which packing says in more words
        window(source, trained, resample=request.resample)
    scale = resolve(request.scale, machine)
    _make_directory(parts.path)
    with RunLock(parts, request.scale.timeout_s) as lock:
        precision = _settle(parts, comes_from, trained, scale, machine)
        try:
            made = _open(request, trained, source, parts, stop)
        except StopRequestedError:
            outcome = Outcome("stopped", "while tiles were packed, which begins anew")
        else:
            task = _task(request, trained, made, parts, comes_from, scale, precision)
            say("\n".join([_headline(trained, made, task), *made.said, *stain_warnings(made.stain)]), console)
            with PredictionDisplay(console, live=not debug) as display:
                if debug:
                    (outcome,) = in_process(partial(_alone, task), stop, display)
                else:
                    work = partial(work_on_group, _group_task(task, request.scale.timeout_s))
                    (outcome,) = on_ray(work, scale, stop, display, lock)
            if outcome.status == "done":
                say("\n".join(_finish(out, trained, made, task, comes_from)), console)
    if outcome.status == "failed":
        raise RunError(outcome.message)
    if outcome.status == "stopped":
        say(f"stopped {outcome.message}: the same command goes on from there", console)
        return STOPPED
    shutil.rmtree(parts.path, ignore_errors=True)
    return DONE


def _check_place(out: Path, trained: TrainedRun) -> None:
    """Refuses an output that would be lost, or lie where a run keeps its own."""
    refuse_lost(out, "--out")
    if out.is_relative_to(trained.run.path):
        raise UsageError(
            f"--out: {out} lies in the run's directory, which holds what training wrote; name another place"
        )
    if out.is_dir():
        raise UsageError(f"--out: {out} is a folder; name a file, such as {out / 'predictions.parquet'}")
    if out.suffix != ".parquet":
        raise UsageError(f"--out: {out}: predictions are a Parquet file, and it is named *.parquet")


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {path} cannot be made ({error.strerror}); name a place to write in") from None


def _comes_from(trained: TrainedRun, source: Source, request: Request) -> Json:
    """What makes predictions what they are: with any of it different, they are others."""
    facts = trained.facts()
    return {
        **{name: facts[name] for name in ("run", "checkpoint", "checkpoint_sha256", "temperature")},
        "tiles": source.path.resolve().name,
        "tiles_digest": source.digest,
        "mpp": source.mpp,
        "resample": request.resample,
        "class_map": dict(request.class_map),
    }


def _is_there(out: Path, comes_from: Json) -> bool:
    """Whether the output has been made already.

    Raises:
        UsageError: where another file is in its place.
    """
    if not out.exists():
        return False
    try:
        known = json.loads((facts_of(out) or {})[COMES_FROM])
    except (KeyError, ValueError, RecursionError):  # somebody else's
        known = {}
    if known == comes_from:
        return True
    raise UsageError(f"--out: {out} is there, and {_difference(known, comes_from)}; delete it, or name another --out")


def _difference(known: Json, comes_from: Json) -> str:
    """In what predictions differ from those that are asked for."""
    if known.keys() != comes_from.keys():
        return "comes from elsewhere"
    changed = [key for key in known if known[key] != comes_from[key]]
    return "is of another " + "; ".join(f"{key} (was {known[key]}, is {comes_from[key]})" for key in changed)


def _settle(parts: PartsDir, comes_from: Json, trained: TrainedRun, scale: Scale, machine: Machine) -> str:
    """Begins, or goes on with what was begun; returns the precision, which stays as it was settled first.

    That is the run's, but for bf16 where the machine has none.

    Raises:
        UsageError: where other predictions were begun under this name.
    """
    if parts.task_file.exists():
        begun = read_json(parts.task_file)
        if begun["comes_from"] != comes_from:
            difference = _difference(begun["comes_from"], comes_from)
            raise UsageError(
                f"--out: {parts.path} holds what was begun under this name, and {difference}; finish that, delete the "
                "folder, or name another --out"
            )
        return str(begun["precision"])
    precision = trained.precision
    if precision == "bf16" and not (machine.gpus_have_bf16() if scale.gpu else cpu_has_bf16()):
        precision = "fp32"
    write_json(parts.task_file, {"comes_from": comes_from, "precision": precision, "begun": now()})
    return precision


def _open(request: Request, trained: TrainedRun, source: Source, parts: PartsDir, stop: StopSignals) -> Made:
    """Opens the tiles, or packs them, and compares them with the run's."""

    def end_if_asked() -> None:
        if stop.asked():
            raise StopRequestedError

    store = open_store(source, parts.store_dir, end_if_asked)
    source = replace(source, tile_size=store.tile_size)
    window(source, trained, resample=request.resample)
    index, said = labelled(store, source, trained, request.class_map)
    stain = stain_differences(store, trained)
    return Made(source, store, index, stain, [*_notes(trained, source, index), *said])


def _notes(trained: TrainedRun, source: Source, index: pd.DataFrame) -> list[str]:
    """What to know of run and tiles before believing a prediction."""
    said, calibration = [], trained.calibration
    trained_for, epochs = trained.epochs
    if trained_for < epochs:
        said.append(f"note: the run is at epoch {trained_for} of {epochs}: this is its best checkpoint so far")
    elif not calibration.is_whole:
        said.append(
            "note: the run ended before temperature and stain were kept with it: probabilities are not calibrated, and "
            "stains not compared. The command that trained it adds both, without training again"
        )
    if calibration.temperature == 1.0:
        said.append(
            "note: validation names no temperature (its tiles are all right, or all wrong): probabilities are as the "
            "network gives them, not calibrated"
        )
    if source.mpp is None and trained.mpp is not None:
        said.append(f"note: microns per pixel of the tiles are unknown; the run's are {trained.mpp:g} (--mpp checks)")
    if trained.tile_size is None:
        said.append("note: the run does not say its tile size (its store is gone), so that it is not compared")
    if twin := as_twin(Path(trained.identity["data"]["tiles"]["path"]), source.path):
        said.append(f"warning: {twin}. What is right among these predictions says nothing of other slides")
    if learned := _learned_from(trained, index):
        said.append(
            f"warning: the run was trained on {counted(learned, 'tile')} of these (equal pixels), which flatters"
        )
    return said


def _learned_from(trained: TrainedRun, index: pd.DataFrame) -> int:
    """How many tiles have the pixels of a training tile."""
    split = read_split(trained.run.split_file)
    known = split.index[split == "train"].str.split("-").str[0]
    return int(index["tile_id"].str.split("-").str[0].isin(known).sum())


def _task(
    request: Request,
    trained: TrainedRun,
    made: Made,
    parts: PartsDir,
    comes_from: Json,
    scale: Scale,
    precision: str,
) -> PredictionTask:
    return PredictionTask(
        trained.run,
        trained.checkpoint,
        trained.config,
        len(trained.classes),
        made.store.path.absolute(),
        made.store.fingerprint,
        window(made.source, trained, resample=request.resample),
        parts,
        digest({**comes_from, "precision": precision, "store": made.store.fingerprint}),
        precision,
        scale,
    )


def _headline(trained: TrainedRun, made: Made, task: PredictionTask) -> str:
    size = describe(made.source.tile_size, made.source.mpp)
    part = (
        "" if task.window == made.source.tile_size else f", of each the middle {task.window[1]} x {task.window[0]} px"
    )
    return (
        f"{counted(len(made.store), 'tile')} of {made.source.path.name}, {size}{part}; run {trained.run.name}, "
        f"{trained.checkpoint.path.name}, {counted(len(trained.classes), 'class', 'classes')}, {task.precision}; "
        f"{task.scale}"
    )


def _alone(task: PredictionTask, report: Report) -> list[Outcome]:
    """As the only worker, in this process."""
    device = torch.device("cuda" if task.scale.gpu else "cpu")
    return predict_together(task, Ranks(device=device), report)


def _group_task(task: PredictionTask, timeout_s: int) -> GroupTask:
    progress = partial(_done, task.parts)
    return GroupTask(partial(predict_together, task), 1, task.scale, timeout_s, task.parts, progress)


def _done(parts: PartsDir) -> int:
    return sum(map(len, parts.parts()))


def _finish(out: Path, trained: TrainedRun, made: Made, task: PredictionTask, comes_from: Json) -> list[str]:
    """Makes one file of the parts, and says what is in it."""
    logits = assemble(task, list(made.store.index["tile_id"]))
    said = _record_look(trained, made)
    temperature = trained.calibration.temperature
    probabilities = softmax(logits, temperature or 1.0)
    called = np.asarray(trained.classes)[logits.argmax(axis=1)]
    table = made.index.assign(predicted=called, probability=probabilities.max(axis=1).astype(np.float32))
    facts = {
        "run": trained.run.name,
        "temperature": json.dumps(temperature),
        "code": code_version(),
        "stain": json.dumps({each.number: {"mean": each.mean, "outside": each.outside} for each in made.stain}),
        COMES_FROM: json.dumps(comes_from),
    }
    write_predictions(out, table, logits, trained.classes, trained.checkpoint.path.name, facts)
    return [*said, *_summary(table, trained), *_rejected(made, task.parts, out), f"predictions: {near(out)}"]


def _record_look(trained: TrainedRun, made: Made) -> list[str]:
    """Adds to the run's evaluations that labelled tiles were looked at; where it may not be written, says so."""
    known = int(made.index["label"].isin(trained.classes).sum())
    if not known:
        return []
    look = {"time": now(), "split": _set_name(trained, made), "checkpoint": trained.checkpoint.path.name}
    facts = {"tiles": known, "by": "predict", "source": made.source.path.name, "fingerprint": made.store.fingerprint}
    try:
        append_json_line(trained.run.evaluations_file, {**look, **facts})
    except OSError as error:
        return [f"note: this look at labelled tiles is not in {trained.run.evaluations_file} ({error.strerror})"]
    return []


def _set_name(trained: TrainedRun, made: Made) -> str:
    """What the run calls these tiles, or their own name."""
    external = trained.identity["data"]["external"]
    names = [name for name, store in external.items() if store["fingerprint"] == made.store.fingerprint]
    return str(names[0] if names else made.source.path.stem)


def _summary(table: pd.DataFrame, trained: TrainedRun) -> list[str]:
    """How many tiles are called what; those of known class scored, and those of other classes apart."""
    known = table["label"].isin(trained.classes)
    lines = [f"predicted: {_counts(table['predicted'], trained.classes)}"]
    if known.any():
        right = (table["predicted"] == table["label"])[known]
        recalls = right.groupby(table["label"][known]).mean()
        lines.append(
            f"of {counted(int(known.sum()), 'tile')} of known class {right.mean():.1%} are right; balanced accuracy "
            f"{recalls.mean():.4f} over {counted(len(recalls), 'class', 'classes')}"
        )
    for label, tiles in table[~known & table["label"].notna()].groupby("label"):
        called = _counts(tiles["predicted"], trained.classes)
        lines.append(f"apart: {counted(len(tiles), 'tile')} labelled {label}, no class of the run, predicted: {called}")
    if unknown := int(table["label"].isna().sum()):
        lines.append(f"{counted(unknown, 'tile')} without a label")
    return lines


def _counts(predicted: pd.Series, classes: Sequence[str]) -> str:
    counts = predicted.value_counts().reindex(list(classes), fill_value=0)
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _rejected(made: Made, parts: PartsDir, out: Path) -> list[str]:
    """Keeps the list of files that were not taken beside the output, and says how many there are."""
    if made.source.is_store:
        return []
    rejected = pd.read_csv(parts.store_dir / REJECTED)
    if not len(rejected):
        return []
    place = out.with_name(f"{out.stem}.rejected.csv")
    shutil.copyfile(parts.store_dir / REJECTED, place)
    kinds = rejected["reason"].str.partition(":")[0].value_counts()
    reasons = joined(f"{count:,} {kind}" for kind, count in kinds.items())
    return [f"{counted(len(rejected), 'file')} not taken ({reasons}), listed in {near(place)}"]
