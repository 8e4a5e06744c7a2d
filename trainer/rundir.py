"""The run directory: every path in it, and how files in it are written. The contract between trainer and analysis."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.errors import RunError

Json = dict[str, Any]


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. `path` is `<storage>/<run>`, or `<storage>/<search>/trials/<id>`."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def storage(self) -> Path:
        """The storage root, which also holds the frozen weights of all its runs."""
        return self.path.parents[2] if self.path.parent.name == "trials" else self.path.parent

    @property
    def identity_file(self) -> Path:
        """What the run is: classes, data, options, versions."""
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def split_file(self) -> Path:
        """The split of each tile."""
        return self.path / "split.parquet"

    @property
    def metrics_file(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def attempts_dir(self) -> Path:
        """One file for each start of a worker group."""
        return self.path / "attempts"

    @property
    def checkpoints_dir(self) -> Path:
        """Verified checkpoints."""
        return self.path / "checkpoints"

    @property
    def quarantine_dir(self) -> Path:
        """Checkpoints that failed verification."""
        return self.path / "quarantine"

    @property
    def best_file(self) -> Path:
        """Which checkpoint is the best so far."""
        return self.path / "best.json"

    @property
    def predictions_dir(self) -> Path:
        """The best checkpoint's logits."""
        return self.path / "predictions"

    @property
    def evaluations_file(self) -> Path:
        """Every time that test or external data was looked at."""
        return self.path / "evaluations.jsonl"

    @property
    def lock_file(self) -> Path:
        """Who is training here."""
        return self.path / "lock.json"

    @property
    def ray_dir(self) -> Path:
        """Ray's own state while it trains: disposable."""
        return self.path / "ray"

    def predictions_file(self, split: str) -> Path:
        """The predictions on `val`, `test` or an external store."""
        return self.predictions_dir / f"{split}.parquet"

    def weights_file(self, sha256: str) -> Path:
        """Frozen tensors, shared by all runs of a storage root."""
        return self.storage / "weights" / f"{sha256}.safetensors"

    def read_identity(self) -> Json:
        """run.json's content; a RunError naming the file where it is missing or damaged."""
        return read_json(self.identity_file)

    def read_metrics(self) -> list[Json]:
        """The epochs so far; none where nothing was trained yet."""
        return read_json_lines(self.metrics_file) if self.metrics_file.exists() else []

    def attempts(self) -> dict[int, Json]:
        """Every attempt's record by its number, in order."""
        files = sorted(self.attempts_dir.glob("[0-9]*.json"))
        return {int(file.stem): read_json(file) for file in files}

    def claim_attempt(self, record: Mapping[str, Any]) -> int | None:
        """Claims the next attempt by creating its file; None where another start was quicker.

        From then on no checkpoint of an earlier attempt beyond `record["resumed_step"]` counts.
        """
        number = max(self.attempts(), default=0) + 1
        self.attempts_dir.mkdir(exist_ok=True)
        file = self.attempts_dir / f"{number:04d}.json"
        return number if create_exclusive(file, _json_bytes({"attempt": number, **record})) else None


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(file: Path) -> Json:
    """A JSON object; a RunError naming the file where it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RunError(f"{file}: is damaged (not JSON); restore it, or start over with --fresh") from None
    if not isinstance(content, dict):
        raise RunError(f"{file}: is damaged (not a JSON object); restore it, or start over with --fresh")
    return content


def read_json_lines(file: Path) -> list[Json]:
    """A file of one JSON object a line."""
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error})") from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    write_atomic(file, _json_bytes(content))


def write_json_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of one JSON object a line in one step."""
    write_atomic(file, "".join(json.dumps(line) + "\n" for line in lines).encode())


def append_json_line(file: Path, line: Mapping[str, Any]) -> None:
    """Adds one JSON object to a file of one a line, durably."""
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_atomic(file: Path, data: bytes) -> None:
    """Replaces a file in one step: after a crash there is the old one or the new one, whole."""
    temporary = _write_beside(file, data)
    temporary.replace(file)
    fsync_dir(file.parent)


def create_exclusive(file: Path, data: bytes) -> bool:
    """Creates a file with its content in one step; False where it exists. Of several processes one succeeds."""
    temporary = _write_beside(file, data)
    try:
        file.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    fsync_dir(file.parent)
    return True


def fsync_dir(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(file: Path, data: bytes) -> Path:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return temporary


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
