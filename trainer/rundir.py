"""The run directory and the search directory: every path in them, and how files in them are written.

The contract between trainer and analysis.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from trainer.durable import create_exclusive, naming, write_atomic
from trainer.errors import RunError

Json = dict[str, Any]
RESTORE = "restore it, or start over with --fresh"
"""What to do about a file without which it is not known what was begun."""


@dataclass(frozen=True)
class Workplace:
    """A directory that one program at a time works in: a run's or a search's."""

    KIND: ClassVar[str]
    BUSY: ClassVar[str] = "being trained"
    ANOTHER: ClassVar[str] = "give this one another --run.name"
    path: Path

    def __str__(self) -> str:
        """In a sentence."""
        return f"{self.KIND} {self.name}"

    @property
    def name(self) -> str:
        """The run's or search's name."""
        return self.path.name

    @property
    def lock_file(self) -> Path:
        """Who works here."""
        return self.path / "lock.json"

    @property
    def fruitless_file(self) -> Path:
        """How many starts of a batch job in a row were stopped before they had got anywhere."""
        return self.path / "fruitless.json"

    @property
    def tensorboard_dir(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def ray_dir(self) -> Path:
        """Ray's own state while it works: disposable."""
        return self.path / "ray"


@dataclass(frozen=True)
class RunDir(Workplace):
    """Paths of one run. `path` is `<storage>/<run>`, or `<storage>/<search>/trials/<id>`."""

    KIND = "run"

    @property
    def storage(self) -> Path:
        """The storage root, which also holds the frozen weights of all its runs."""
        is_trial = SearchDir(self.path.parents[1]).exists()
        return self.path.parents[2] if is_trial else self.path.parent

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
    def diverged_file(self) -> Path:
        """The tiles that it learned from last, where its training diverged."""
        return self.path / "diverged.json"

    @property
    def predictions_dir(self) -> Path:
        """The best checkpoint's logits."""
        return self.path / "predictions"

    @property
    def evaluations_file(self) -> Path:
        """Every time that test or external data was looked at."""
        return self.path / "evaluations.jsonl"

    @property
    def trial_file(self) -> Path:
        """A trial's parameters and status, which the search keeps."""
        return self.path / "trial.json"

    def predictions_file(self, split: str) -> Path:
        """The predictions on `val`, `test` or an external store."""
        return self.predictions_dir / f"{split}.parquet"

    def attempt_file(self, number: int) -> Path:
        """One attempt's record."""
        return self.attempts_dir / f"{number:04d}.json"

    def weights_file(self, sha256: str) -> Path:
        """Frozen tensors, shared by all runs of a storage root."""
        return self.storage / "weights" / f"{sha256}.safetensors"

    def beginning(self) -> list[Path]:
        """The files that say what the run is and who trains it, as far as they are there."""
        files = [self.split_file, self.config_file, self.identity_file, *sorted(self.attempts_dir.glob("[0-9]*.json"))]
        return [file for file in files if file.exists()]

    def results(self) -> list[Path]:
        """The files that say what its checkpoints led to, as far as they are there."""
        files = [self.metrics_file, self.best_file, self.evaluations_file, self.diverged_file]
        made = [*self.predictions_dir.glob("[!.]*.parquet"), *self.tensorboard_dir.glob("events.*")]
        return [file for file in (*files, *sorted(made)) if file.exists()]

    def read_evaluations(self) -> list[Json]:
        """Every look at test or external data so far."""
        return read_json_lines(self.evaluations_file, appended=True) if self.evaluations_file.exists() else []

    def has_begun(self) -> bool:
        """Whether anything was trained here."""
        return self.newest_attempt() > 0 or any(self.checkpoints_dir.glob("step-*"))

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

    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 where there was none."""
        return max((int(file.stem) for file in self.attempts_dir.glob("[0-9]*.json")), default=0)

    def claim_attempt(self, number: int, record: Mapping[str, Any]) -> bool:
        """Claims an attempt by creating its file; False where another start was quicker.

        From then on no checkpoint of an earlier attempt beyond `record["resumed_step"]` counts.
        """
        self.checkpoints_dir.mkdir(exist_ok=True)  # first: an attempt without it has lost it
        self.attempts_dir.mkdir(exist_ok=True)
        return create_exclusive(self.attempt_file(number), json_bytes({"attempt": number, **record}))


@dataclass(frozen=True)
class SearchDir(Workplace):
    """Paths of one search, `<storage>/<search>`. Its trials are run directories, and so are its final runs."""

    KIND = "search"

    @property
    def search_file(self) -> Path:
        """What the search is, how far it is, and what it chose."""
        return self.path / "search.json"

    @property
    def trials_dir(self) -> Path:
        """The trials, by number."""
        return self.path / "trials"

    @property
    def final_dir(self) -> Path:
        """The choice, trained again with new seeds."""
        return self.path / "final"

    def exists(self) -> bool:
        """Whether there is a search."""
        return self.search_file.exists()

    def read(self) -> Json:
        """search.json's content; a RunError naming the file where it is missing or damaged."""
        return read_json(self.search_file)

    def trial(self, number: int) -> RunDir:
        """One trial's run directory."""
        return RunDir(self.trials_dir / f"{number:04d}")

    def final(self, trial: str, seed: int) -> RunDir:
        """The run directory of a trial's parameters, trained again with another seed."""
        return RunDir(self.final_dir / f"{trial}-seed{seed}")

    def trials(self) -> list[RunDir]:
        """The trials so far, in order of their numbers."""
        found = [RunDir(file.parent) for file in self.trials_dir.glob("*/trial.json")]
        return sorted(found, key=lambda run: (len(run.name), run.name))

    def unknown(self) -> list[RunDir]:
        """Trials and final runs of which nothing is known but that they began."""
        begun = [RunDir(file.parent) for file in sorted(self.path.glob("*/*/run.json"))]
        return [run for run in begun if not run.trial_file.exists()]

    def finals(self) -> list[RunDir]:
        """The final runs so far, of every choice that was ever made."""
        return [RunDir(file.parent) for file in sorted(self.final_dir.glob("*/trial.json"))]


@dataclass(frozen=True)
class PartsDir(Workplace):
    """Paths of predictions while they are made, beside the file that they become: `<file>.parts`."""

    KIND = "prediction"
    BUSY = "being made"
    ANOTHER = "give this one another --out"

    @classmethod
    def of(cls, file: Path) -> PartsDir:
        """Of the predictions that are to be in a file."""
        return cls(file.with_name(f"{file.name}.parts"))

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name.removesuffix(".parts")

    @property
    def task_file(self) -> Path:
        """What is predicted, by what."""
        return self.path / "prediction.json"

    @property
    def store_dir(self) -> Path:
        """The tiles, packed, where they did not come as a store."""
        return self.path / "store"

    @property
    def logits_dir(self) -> Path:
        """Parts of the predictions, a file each."""
        return self.path / "logits"

    def part_file(self, rows: range) -> Path:
        """The predictions of some rows of the store."""
        return self.logits_dir / f"{rows.start:09d}-{rows.stop:09d}.parquet"

    def parts(self) -> dict[range, Path]:
        """The parts so far, in order, by the rows that their names say."""
        files = sorted(self.logits_dir.glob("[0-9]*-[0-9]*.parquet"))
        return {range(*map(int, file.stem.split("-"))): file for file in files}


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(file: Path) -> Json:
    """A JSON object; a RunError naming the file where it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise RunError(f"{file}: is damaged (not JSON); {RESTORE}") from None
    if not isinstance(content, dict):
        raise RunError(f"{file}: is damaged (not a JSON object); {RESTORE}")
    return content


def read_json_lines(file: Path, *, appended: bool = False) -> list[Json]:
    """A file of one JSON object a line; a RunError naming it where it is missing or damaged.

    Where lines were `appended` to it, one that a crash has cut short is none.
    """
    try:
        content = file.read_bytes()
        return [json.loads(line) for line in (_whole_lines(content) if appended else content).splitlines()]
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file}: is damaged ({error}); restore it, or take the line out that is") from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    write_atomic(file, json_bytes(content))


def write_json_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of one JSON object a line in one step."""
    write_atomic(file, "".join(json.dumps(line) + "\n" for line in lines).encode())


def append_json_line(file: Path, line: Mapping[str, Any]) -> None:
    """Adds one JSON object to a file of one a line, durably, in the place of one that a crash has cut short."""
    with naming(file), file.open("a+b") as stream:
        stream.seek(0)
        stream.truncate(len(_whole_lines(stream.read())))
        stream.write(json.dumps(line).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON file's content, for people too."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
