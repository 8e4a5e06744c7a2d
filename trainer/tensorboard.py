"""Event files for TensorBoard: what metrics.jsonl says of a run, epoch by epoch, and what a trial's parameters were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.rundir import Json

TOLD_OTHERWISE = {"epoch", "step", "attempt", "world_size"}


def with_events(report: Callable[[Json], bool], folder: Path, attempt: int) -> Callable[[Json], bool]:
    """`report`, which also writes each epoch's figures to an event file of this attempt.

    What an earlier attempt wrote of an epoch that is trained again does not count (`purge_step`).
    """
    writers: list[Any] = []

    def report_and_write(message: Json) -> bool:
        if message["phase"] == "epoch":
            record = message["record"]
            if not writers:
                writers.append(_writer(folder, f".a{attempt:04d}", purge_step=record["epoch"]))
            for key in record.keys() - TOLD_OTHERWISE:
                writers[0].add_scalar(key, record[key], record["epoch"])
            writers[0].flush()
        return report(message)

    return report_and_write


def write_hparams(folder: Path, parameters: Mapping[str, Any], metric: str) -> None:
    """Writes a trial's parameters for TensorBoard's HParams, which finds the metric among the run's own figures."""
    from tensorboardX.summary import hparams

    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in parameters.items()}
    writer = _writer(folder, ".hparams")
    for summary in hparams(plain, {metric: 0.0}):
        writer.file_writer.add_summary(summary)
    writer.close()


def _writer(folder: Path, suffix: str, **options: Any) -> Any:
    from tensorboardX import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), filename_suffix=suffix, **options)
