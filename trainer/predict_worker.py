"""What one worker does to predict tiles, from the network that it opens to the parts that it writes. No Ray here."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from trainer.checkpoint import Checkpoint, find_flaw, load_model
from trainer.config import Config
from trainer.durable import write_atomic
from trainer.errors import RunError, UsageError
from trainer.loop import EVALUATION_BATCH, Outcome, StopRequestedError, Trained, Trunk, evaluate
from trainer.model import cut
from trainer.new_tiles import Size, middle
from trainer.ranks import Ranks
from trainer.rundir import Json, PartsDir, RunDir
from trainer.scale import Scale, unseen_gpus
from trainer.tiles.loader import TileSet
from trainer.tiles.store import TileStore
from trainer.wording import counted
from trainer.worker import Report, on_all, on_first

PART_S = 20.0
"""About how much work a part is: what a stop or a kill may lose."""
GROWTH = 4


@dataclass(frozen=True)
class PredictionTask:
    """What is to be predicted, by what, and where the parts go."""

    run: RunDir
    checkpoint: Checkpoint
    config: Config
    classes: int
    store: Path
    fingerprint: str
    """The store's."""
    window: Size
    parts: PartsDir
    digest: str
    """Of all that the predictions come from; every part bears it."""
    precision: str
    scale: Scale


def predict_together(task: PredictionTask, ranks: Ranks, report: Report) -> list[Outcome]:
    """Predicts what has not been predicted yet, part by part."""
    if task.scale.gpu and ranks.device.type != "cuda":
        return [Outcome("failed", f"{socket.gethostname()}: {unseen_gpus()}")]
    torch.set_num_threads(task.scale.threads)
    torch.backends.cudnn.allow_tf32 = task.precision != "fp32"
    try:
        store = on_all(ranks, partial(_open_here, task))
        trunk, network = on_all(ranks, partial(_load, task, ranks))
        todo, said = on_first(ranks, partial(gaps, task, list(store.index["tile_id"])))
        done = len(store) - sum(map(len, todo))
        if ranks.first:
            on = f"on {counted(ranks.world_size, 'worker')}"
            begins = f"goes on after {done:,} of {counted(len(store), 'tile')}" if done else "begins"
            report({"phase": "start", "lines": [*said, f"{begins}, {on}"]})
        _predict(task, store, todo, trunk, network, ranks, report)
    except StopRequestedError:
        kept = sum(map(len, task.parts.parts()))
        return [Outcome("stopped", f"after {kept:,} of {counted(len(store), 'tile')}")]
    except (UsageError, RunError) as error:
        return [Outcome("failed", str(error))]
    return [Outcome("done")]


def _open_here(task: PredictionTask) -> TileStore:
    """The tiles, as this node sees them."""
    if not task.parts.path.is_dir():
        raise RunError(f"{task.parts.path} is not there; give --out a path that all nodes see")
    store = TileStore.open(task.store)
    if store.fingerprint != task.fingerprint:
        raise RunError(f"{task.store} holds other tiles here; name a store that all nodes see")
    return store


def _load(task: PredictionTask, ranks: Ranks) -> tuple[Trunk, Trained]:
    """The network, cut as in training, so that it computes what it did there."""
    if flaw := find_flaw(task.checkpoint):
        raise RunError(f"{task.checkpoint.path}: cannot be used: {flaw}")
    model = load_model(task.run, task.checkpoint).to(ranks.device).to(memory_format=torch.channels_last)
    frozen, learned = cut(model, task.config.model.unfrozen_depth)
    return Trunk(frozen, task.precision, EVALUATION_BATCH), Trained(learned, task.classes, task.precision)


def _predict(
    task: PredictionTask,
    store: TileStore,
    todo: Sequence[range],
    trunk: Trunk,
    network: Trained,
    ranks: Ranks,
    report: Report,
) -> None:
    """Predicts the rows of the store that are to be, in parts that begin where a batch does, whatever the workers."""
    tiles = middle(store.tiles, task.window)
    ids = list(store.index["tile_id"])
    done, total, began = len(store) - sum(map(len, todo)), len(store), time.monotonic()
    new = 0
    batches = ranks.world_size
    for gap in todo:
        start = gap.start
        while start < gap.stop:
            rows = np.arange(start, min(gap.stop, start + batches * EVALUATION_BATCH))
            part = TileSet(tiles, rows, np.full(len(rows), -1))
            report_part = partial(_report_part, report, done + new, total, new, began)
            part_began = time.monotonic()
            (logits,) = evaluate(trunk, [network], part, "predict", task.config, ranks, report_part)
            here = range(start, start + len(rows))
            on_first(ranks, partial(write_part, task, here, ids[here.start : here.stop], logits))
            new += len(rows)
            batches = ranks.from_first(_next_size(batches, time.monotonic() - part_began, ranks.world_size))
            start = here.stop


def _report_part(report: Report, done: int, total: int, new: int, began: float, message: Json) -> bool:
    """Passes on how far all parts are, and how fast this start is."""
    rate = (new + message["done"]) / max(time.monotonic() - began, 1e-9)
    return report({**message, "done": done + message["done"], "total": total, "tiles_per_s": rate})


def _next_size(batches: int, seconds: float, workers: int) -> int:
    """How many batches the next part has, for it to take `PART_S`; as many for each worker."""
    wanted = batches * min(GROWTH, PART_S / max(seconds, 1e-9))
    return max(1, int(wanted / workers)) * workers


def write_part(task: PredictionTask, rows: range, ids: Sequence[str], logits: NDArray[np.float32]) -> None:
    """Keeps the (n, classes) logits of some rows of the store, whole or not at all, so that damage can be told."""
    table = pa.table({"tile_id": pa.array(ids, pa.string()), "logits": pa.array(list(logits), pa.list_(pa.float32()))})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"digest": task.digest}), buffer, write_page_checksum=True)
    task.parts.logits_dir.mkdir(exist_ok=True)
    write_atomic(task.parts.part_file(rows), buffer.getvalue())


def read_part(task: PredictionTask, file: Path, ids: Sequence[str]) -> NDArray[np.float32] | None:
    """The logits of a part; None where it is damaged, or is not of these tiles by this task."""
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        if table.schema.metadata[b"digest"].decode() != task.digest or table["tile_id"].to_pylist() != list(ids):
            return None
        flat = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, dtype=np.float32).reshape(len(ids), task.classes)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def gaps(task: PredictionTask, ids: Sequence[str]) -> tuple[list[range], list[str]]:
    """The rows that are still to be predicted, and a line for each part that was removed since it is not good."""
    place, missing, said = 0, [], []
    for rows, file in task.parts.parts().items():
        if rows.start < place or read_part(task, file, ids[rows.start : rows.stop]) is None:
            file.unlink()
            said.append(f"{file.name} is damaged or out of place, and is predicted again")
            continue
        if rows.start > place:
            missing.append(range(place, rows.start))
        place = rows.stop
    if place < len(ids):
        missing.append(range(place, len(ids)))
    return missing, said


def assemble(task: PredictionTask, ids: Sequence[str]) -> NDArray[np.float32]:
    """All (N, classes) logits, in storage order.

    Raises:
        RunError: where a part is missing or damaged.
    """
    missing, _ = gaps(task, ids)
    if missing:
        raise RunError(f"{task.parts.logits_dir}: {len(missing)} parts are missing; the same command makes them again")
    parts = [read_part(task, file, ids[rows.start : rows.stop]) for rows, file in task.parts.parts().items()]
    return np.concatenate([part for part in parts if part is not None])
