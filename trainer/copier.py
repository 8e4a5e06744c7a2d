"""Copies a run to its mirror beside the training, which never waits for it but at its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint import MANIFEST, NAME, Checkpoint, find_flaw, listed
from trainer.errors import RunError
from trainer.mirror import Mirror, reason
from trainer.rundir import RunDir

END_WAIT_S = 60.0


class TakenOverError(Exception):
    """The run is another attempt's, which alone may write."""


class Copier:
    """Copies a run, for one of its attempts, in a thread of its own.

    Each look makes the mirror what the run directory is. What cannot be done now is tried again at the next `wake`.
    """

    def __init__(self, uri: str, run: RunDir, attempt: int, base: Path, say: Callable[[str], object]):
        """`base` is the file of the weights that the run started from; `say` is called in the thread."""
        self.uri, self.run, self.attempt, self.base, self.say = uri, run, attempt, base, say
        self._mirror: Mirror | None = None
        self._copied: dict[Path, tuple[int, int]] = {}
        self._behind = False
        self._taken_over = False
        self._ending = False
        self._wanted = threading.Event()
        self._wanted.set()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the run directory. Returns at once."""
        self._wanted.set()

    def finish(self, wait_s: float = END_WAIT_S) -> None:
        """Ends the thread after one more look; waits for that, but no longer than this."""
        self._ending = True
        self._wanted.set()
        self._thread.join(wait_s)
        if wait_s and not self._taken_over and (self._behind or self._thread.is_alive()):
            self.say(f"mirror {self.uri}: does not hold all of the run; the same command copies the rest")

    def _run(self) -> None:
        ending = False
        while not ending and not self._taken_over:
            self._wanted.wait()
            self._wanted.clear()
            ending = self._ending
            self._look()

    def _look(self) -> None:
        try:
            self._mirror = self._mirror or Mirror(self.uri, self.run)
            self._copy(self._mirror)
        except TakenOverError as error:
            self._taken_over = True
            self.say(f"mirror {self.uri}: nothing more is copied: {error}")
        except Exception as error:  # whatever a storage elsewhere does, the training goes on
            if not self._behind:
                again = "training goes on, and the next checkpoint tries again"
                self.say(f"mirror {self.uri}: cannot be brought up to date ({reason(error)}); {again}")
            self._behind = True
        else:
            if self._behind:
                self.say(f"mirror {self.uri}: is up to date again")
            self._behind = False

    def _copy(self, mirror: Mirror) -> None:
        """What the run began with, then its checkpoints, newest first, then what they led to."""
        self._copy_changed(mirror, self.run.beginning())
        if mirror.sizes(self.base.parent).get(self.base.name) != self.base.stat().st_size:
            self._copy_changed(mirror, [self.base])
        there = mirror.sizes(self.run.checkpoints_dir)
        missing = [checkpoint for checkpoint in listed(self.run) if not _holds(there, checkpoint)]
        flaws = [flaw for checkpoint in missing if (flaw := self._copy_checkpoint(mirror, checkpoint))]
        self._copy_changed(mirror, self.run.results())
        self._prune(mirror)
        if flaws:
            raise RunError(flaws[0])

    def _check_is_mine(self, mirror: Mirror) -> None:
        if (newest := self.run.newest_attempt()) > self.attempt:
            raise TakenOverError(f"attempt {newest} has taken the run over from attempt {self.attempt}")
        if (file := mirror.stranger()) is not None:
            raise TakenOverError(f"the run went on elsewhere, or another has its name ({file} is not this run's)")

    def _copy_changed(self, mirror: Mirror, files: list[Path]) -> None:
        """Copies files that are other than when they were last copied."""
        self._check_is_mine(mirror)
        for file in files:
            with file.open("rb") as source:
                status = os.fstat(source.fileno())
                signature = status.st_mtime_ns, status.st_size
                if self._copied.get(file) != signature:
                    mirror.write(file, source)
            self._copied[file] = signature

    def _copy_checkpoint(self, mirror: Mirror, checkpoint: Checkpoint) -> str | None:
        """Copies a checkpoint that verifies; says why where one does not."""
        try:
            if flaw := find_flaw(checkpoint):
                return f"{checkpoint.path.name}: {flaw}" if checkpoint.path.exists() else None
            mirror.write_checkpoint(checkpoint, lambda: self._check_is_mine(mirror))
        except FileNotFoundError:
            if checkpoint.path.exists():
                raise  # else training has no use for it any more
        return None

    def _prune(self, mirror: Mirror) -> None:
        """Removes what the run directory has no longer, and is older than a checkpoint that the mirror has whole."""
        there, here = mirror.sizes(self.run.checkpoints_dir), listed(self.run)
        newest = max((c.path.name for c in here if _holds(there, c)), key=_place_in_run, default=None)
        names = {name.split("/")[0] for name in there} - {c.path.name for c in here}
        for name in filter(NAME.fullmatch, names):
            if newest and _place_in_run(name) < _place_in_run(newest):
                self._check_is_mine(mirror)
                mirror.remove_checkpoint(name)


def _holds(there: dict[str, int], checkpoint: Checkpoint) -> bool:
    """Whether all of a checkpoint's files are there, at their sizes."""
    here = {f"{checkpoint.path.name}/{file.name}": file.stat().st_size for file in checkpoint.path.glob("*")}
    return here.items() <= there.items() and f"{checkpoint.path.name}/{MANIFEST}" in there


def _place_in_run(name: str) -> tuple[int, int]:
    """Step and attempt of a checkpoint's name."""
    match = NAME.fullmatch(name)
    assert match, "a checkpoint's name"
    return int(match[1]), int(match[2])
