"""Checkpoints: commit, verify, the newest good one, quarantine, prune.

A checkpoint is a directory `step-00000123-a0001` that appears whole: files are written and fsynced under a temporary
name, then a manifest with every file's size and sha256, then one rename. Nothing is trusted before it is verified.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trainer.durable import naming, sync, write_atomic
from trainer.ema import evaluated
from trainer.errors import RunError, is_out_of_memory
from trainer.model import build
from trainer.rundir import RESTORE, Json, RunDir, read_json, write_json, write_json_lines
from trainer.weights import Base

TENSORS = "trained.safetensors"
STATE = "state.pt"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})-a(\d{4,})")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A committed checkpoint's place: after `step` optimizer steps, by `attempt`."""

    step: int
    attempt: int
    path: Path


def commit(
    run: RunDir, step: int, attempt: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], facts: Json
) -> Checkpoint:
    """Writes a checkpoint so that it exists whole or not at all, and verifies what was written.

    Args:
        run: where.
        step: optimizer steps taken.
        attempt: the attempt that writes.
        tensors: what training changed, by state-dict name; averages under `trainer.ema.PREFIX` before it.
        state: optimizer, schedule, position and history; plain values and tensors only.
        facts: further entries of the manifest.
    """
    name = f"step-{step:08d}-a{attempt:04d}"
    final, temporary = run.checkpoints_dir / name, run.checkpoints_dir / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(final):
            temporary.mkdir()  # not what is above: that would be where the storage was
            _write(temporary, tensors, state, {"step": step, "attempt": attempt, **facts})
            temporary.replace(final)
            sync(run.checkpoints_dir)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # it would take the room that the next one needs
        raise
    checkpoint = Checkpoint(step, attempt, final)
    if flaw := find_flaw(checkpoint):
        raise RunError(f"{final}: was written, but does not read back ({flaw}); check the storage")
    return checkpoint


def _write(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], facts: Json) -> None:
    """Writes a checkpoint's files, its manifest last."""
    write_atomic(folder / TENSORS, save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))
    write_atomic(folder / STATE, _torch_bytes(state))
    manifest = {**facts, "files": {file.name: _describe(file) for file in sorted(folder.iterdir())}}
    write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    sync(folder)


def find_flaw(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint cannot be trusted, or None where every byte is as it was written."""
    try:
        manifest = json.loads((checkpoint.path / MANIFEST).read_bytes())
        digest, place = manifest.pop("sha256"), (manifest["step"], manifest["attempt"])
        files = {name: {key: said[key] for key in ("size", "sha256")} for name, said in manifest["files"].items()}
    except FileNotFoundError:
        return "it has no manifest"
    except OSError as error:
        raise _unreadable(checkpoint, error) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "its manifest is damaged"
    if digest != _digest(manifest) or any(Path(name).name != name for name in files):
        return "its manifest is damaged"
    if place != (checkpoint.step, checkpoint.attempt):
        return "its manifest is another checkpoint's"
    for name, described in files.items():
        try:
            found = _describe(checkpoint.path / name)
        except (FileNotFoundError, ValueError):  # ValueError: no file can have that name
            return f"{name} is missing"
        except OSError as error:
            raise _unreadable(checkpoint, error) from None
        if found != described:
            what = "size" if found["size"] != described["size"] else "content"
            return f"{name} has another {what} than its manifest says"
    return None


def _unreadable(checkpoint: Checkpoint, error: OSError) -> RunError:
    """A storage that does not answer says nothing about the checkpoint: nothing is moved on its account."""
    return RunError(f"{checkpoint.path}: cannot be read ({error.strerror}); check the storage, then start again")


def listed(run: RunDir) -> list[Checkpoint]:
    """The checkpoints that count, newest first: those that no later attempt resumed below."""
    resumed = {number: int(record["resumed_step"]) for number, record in run.attempts().items()}
    return sorted((c for c in _named(run) if counts(c.step, c.attempt, resumed)), reverse=True)


def _named(run: RunDir) -> list[Checkpoint]:
    """All that are there, in no order."""
    named = [(NAME.fullmatch(path.name), path) for path in run.checkpoints_dir.glob("step-*")]
    return [Checkpoint(int(match[1]), int(match[2]), path) for match, path in named if match]


def counts(step: int, attempt: int, resumed: Mapping[int, int]) -> bool:
    """Whether a checkpoint is part of the run's history, given the step that each attempt resumed from.

    A later attempt that went on from below this step has replaced it; so has one that was still being written by an
    attempt which had lost the run.
    """
    return all(step <= resumed_step for later, resumed_step in resumed.items() if later > attempt)


def resume_point(run: RunDir) -> tuple[Checkpoint | None, list[str]]:
    """Where a run goes on, and what there is to say of it; None where nothing was trained yet.

    Raises:
        RunError: where the run has a history and no good checkpoint: it must not silently start over; or where an
            attempt's record is missing: which checkpoints count is not known then.
    """
    _refuse_missing_attempts(run)
    checkpoint, said = newest_good(run)
    if checkpoint is None and (said or _had_checkpoints(run)):
        lines = [*said, f"{run.path}: has a history, but no good checkpoint; start over with --fresh"]
        raise RunError("\n".join(lines))
    return checkpoint, said


def _refuse_missing_attempts(run: RunDir) -> None:
    known = run.attempts()
    begun = max([*known, *(checkpoint.attempt for checkpoint in _named(run))], default=0)
    for number in range(1, begun + 1):
        if number not in known:
            raise RunError(f"{run.attempt_file(number)}: is missing, and attempt {begun} has begun; {RESTORE}")


def _had_checkpoints(run: RunDir) -> bool:
    attempts = run.attempts().values()
    lost = bool(attempts) and not run.checkpoints_dir.exists()
    resumed = any(record["resumed_step"] > 0 for record in attempts)
    return lost or resumed or bool(run.read_metrics()) or any(run.quarantine_dir.glob("*"))


def newest_step(run: RunDir) -> int:
    """Of all checkpoints that count, damaged ones too; 0 where there is none."""
    return max((checkpoint.step for checkpoint in listed(run)), default=0)


def newest_good(run: RunDir) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and one line for each that was moved to quarantine on the way."""
    said: list[str] = []
    for checkpoint in listed(run):
        flaw = find_flaw(checkpoint)
        if flaw is None:
            return checkpoint, said
        said.append(f"checkpoint {checkpoint.path.name} is not used: {flaw}; moved to {quarantine(run, checkpoint)}")
    return None, said


def quarantine(run: RunDir, checkpoint: Checkpoint) -> Path:
    """Moves a checkpoint out of the way, and says where it is now."""
    run.quarantine_dir.mkdir(exist_ok=True)
    taken = sum(path.name.startswith(checkpoint.path.name) for path in run.quarantine_dir.iterdir())
    place = run.quarantine_dir / (checkpoint.path.name + (f"-{taken + 1}" if taken else ""))
    checkpoint.path.rename(place)
    sync(run.checkpoints_dir)
    return place


def read(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Json]:
    """A verified checkpoint's tensors and state, on the CPU. Nothing in it is executed.

    Raises:
        RunError: where it is not what a training of ours commits.
    """
    try:
        tensors = load((checkpoint.path / TENSORS).read_bytes())
        state = torch.load(checkpoint.path / STATE, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(checkpoint, error) from None
    except Exception as error:  # both raise whatever a stranger's bytes provoke
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"{checkpoint.path}: holds something else than tensors and plain values, which is not read (it might run "
            "code); no training of ours has committed it, so move it away"
        ) from None
    return tensors, state


def best_of(run: RunDir, history: list[Json], metric: str) -> tuple[Json, Checkpoint] | None:
    """The best epoch of a history whose checkpoint still counts; the earliest where several are equal."""
    sign = -1 if metric.endswith("loss") else 1
    kept = {(c.step, c.attempt): c for c in listed(run)}
    candidates = [(record, kept[key]) for record in history if (key := (record["step"], record["attempt"])) in kept]
    return max(candidates, key=lambda pair: sign * pair[0][metric], default=None)


def write_history(run: RunDir, history: list[Json], metric: str) -> Checkpoint | None:
    """Writes metrics.jsonl and best.json from the history inside a checkpoint; answers with the best one, if any."""
    write_json_lines(run.metrics_file, history)
    if (best := best_of(run, history, metric)) is None:
        return None
    record, checkpoint = best
    facts = {"epoch": record["epoch"], "step": record["step"], "checkpoint": checkpoint.path.name}
    write_json(run.best_file, {**facts, "metric": metric, "value": record[metric]})
    return checkpoint


def best_good(run: RunDir, history: list[Json], metric: str) -> Checkpoint:
    """The best checkpoint that verifies; those that do not go to quarantine. best.json is written to match."""
    while (checkpoint := write_history(run, history, metric)) is not None:
        if find_flaw(checkpoint) is None:
            return checkpoint
        quarantine(run, checkpoint)
    raise RunError(f"{run.path}: no epoch's checkpoint is good; start over with --fresh")


def prune(run: RunDir, keep: int) -> None:
    """Removes checkpoints beyond the best, the latest and `keep` - 2 older ones, and all that no longer count.

    So are those that an earlier attempt was writing when it was killed. All is looked up before it is judged: what a
    later attempt writes meanwhile, which may have taken the run over, is not among it.
    """
    found, unfinished = [[*run.checkpoints_dir.glob(pattern)] for pattern in ("step-*", ".step-*.tmp")]
    newest = f"-a{run.newest_attempt():04d}.tmp"
    for path in unfinished:
        if not path.name.endswith(newest):
            shutil.rmtree(path, ignore_errors=True)
    counted = listed(run)
    best = read_json(run.best_file)["checkpoint"] if run.best_file.exists() else None
    spare = keep - 1 - any(c.path.name == best for c in counted[1:])
    kept = {c.path.name for c in counted[: 1 + spare]} | {best}
    for path in found:
        if path.name not in kept:
            # Renamed first: nobody sees a half of it, and a file that is still being read holds nothing up.
            with suppress(FileNotFoundError):  # as where a later attempt has removed it
                removed = path.rename(path.with_name(f".{path.name}.tmp"))
                shutil.rmtree(removed, ignore_errors=True)


def store_base(run: RunDir, sha256: str, data: bytes) -> None:
    """Keeps the weights that a run starts from under their hash, once for all runs of a storage root."""
    file = run.weights_file(sha256)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, data)


def read_base(run: RunDir, sha256: str) -> dict[str, Tensor]:
    """The weights that a run started from; a RunError where the file is gone or damaged."""
    return load(_base_bytes(run, sha256))


def stored_base(run: RunDir, sha256: str, source: str) -> Base:
    """The same as they were read, of `source`, when the first run of a storage root started from them."""
    data = _base_bytes(run, sha256)
    return Base(load(data), data, sha256, source)


def _base_bytes(run: RunDir, sha256: str) -> bytes:
    file = run.weights_file(sha256)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file}: the run's frozen weights cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{file}: is damaged (another sha256 than its name); delete it and start the run again")
    return data


def load_best_model(run: RunDir) -> nn.Sequential:
    """The network of a run's best checkpoint, as it was evaluated, in evaluation mode, on the CPU.

    Raises:
        RunError: where the run has no best checkpoint, or it is damaged.
    """
    return load_model(run, best_checkpoint(run))


def best_checkpoint(run: RunDir) -> Checkpoint:
    """A run's best checkpoint, verified.

    Raises:
        RunError: where the run has none, or it is damaged.
    """
    name = read_json(run.best_file)["checkpoint"]
    match = NAME.fullmatch(name)
    if match is None:
        raise RunError(f"{run.best_file}: is damaged: {name} is no checkpoint's name")
    checkpoint = Checkpoint(int(match[1]), int(match[2]), run.checkpoints_dir / name)
    if flaw := find_flaw(checkpoint):
        raise RunError(f"{checkpoint.path}: cannot be used: {flaw}")
    return checkpoint


def load_model(run: RunDir, checkpoint: Checkpoint) -> nn.Sequential:
    """The network of a verified checkpoint, in evaluation mode, on the CPU: with averaged weights, if it has some."""
    tensors = evaluated(read(checkpoint)[0])
    model = build(len(tensors["fc.bias"]), seed=0)
    base = read_base(run, read_json(checkpoint.path / MANIFEST)["base_sha256"])
    model.load_state_dict({**base, **tensors})
    return model.eval()


def _torch_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _describe(file: Path) -> Json:
    with file.open("rb") as stream:
        return {"size": os.fstat(stream.fileno()).st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _digest(manifest: Json) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
