"""How the nodes of one job find each other: small files in a folder that all of them see."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.private import write_token

Word = dict[str, Any]
EARLY = ".stopped-early"
MARK = ".tissuegrid-meeting"
ABANDONED_AFTER_S = 24 * 3600.0
TRIES, AGAIN_S = 10, 1.0


class RendezvousError(Exception):
    """The folder cannot serve as the meeting place, and what to do."""


@dataclass(frozen=True)
class Rendezvous:
    """A folder of one start of a job: the token, the head's address, and how each node is.

    Every node writes its own file every few seconds. On a network file system that is also what makes it see soon
    what others have written: a client believes its memory of a folder for up to a minute, unless it changes it itself.
    """

    path: Path

    @property
    def token_file(self) -> Path:
        """Ray's token of this job, for this user alone."""
        return self.path / "token"

    def open(self) -> None:
        """Makes the folder, as any of the nodes may, for this user alone.

        Raises:
            RendezvousError: where it cannot be made here, or is somebody else's.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            found = self.path.lstat()
        except OSError as error:
            raise RendezvousError(
                f"{error.filename}: {error.strerror}; --shared must be a folder that every node sees and may write to"
            ) from None
        self._remove_abandoned()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise RendezvousError(f"{self.path} is open to others: remove it, or name another folder with --shared")
        with suppress(OSError):
            (self.path / MARK).touch()

    def write_token(self) -> None:
        """Makes up the job's token; the head does, before it opens the cluster.

        Raises:
            RendezvousError: where the folder is left from another start, whose token nobody should use.
        """
        try:
            write_token(self.token_file)
        except FileExistsError:
            raise RendezvousError(f"{self.path} is left from an earlier start of this name; remove it") from None

    def open_cluster(self, address: str) -> None:
        """Says where the head is."""
        self._insist("head", {"address": address})

    def close_cluster(self) -> None:
        """Says that it is over."""
        self._insist("over", {})

    def publish(self, rank: int, word: Word, topic: str = "node") -> None:
        """Says how a node is, or what it has to say on a topic."""
        self._write(f"{topic}-{rank}", word)

    def head(self) -> str | None:
        """Where the head is (host:port), once it says so."""
        word = self._read("head")
        return None if word is None else str(word["address"])

    def over(self) -> bool:
        """Whether the head has said that it is over."""
        return self._read("over") is not None

    def word_of(self, rank: int, topic: str = "node") -> Word | None:
        """What a node said last; None where it has not come, or has said nothing on the topic."""
        return self._read(f"{topic}-{rank}")

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Removes this user's meetings beside it in which nothing has been said for a day: they were killed.

        So too what `cluster.early` has noted of jobs that were cancelled.
        """
        for mark in self.path.parent.glob(f"*/{MARK}"):
            with suppress(OSError):
                found = mark.parent.lstat()
                mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
                if mine and time.time() - found.st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(mark.parent)
        for note in self.path.parent.glob(f"*{EARLY}"):
            with suppress(OSError):
                if time.time() - note.lstat().st_mtime > ABANDONED_AFTER_S:
                    note.unlink()

    def _write(self, name: str, word: Mapping[str, Any]) -> bool:
        """Whole or not at all. False where the storage does not answer now, which is no reason to end what runs."""
        try:
            temporary = self.path / f".{name}"
            temporary.write_text(json.dumps(word))
            temporary.replace(self.path / f"{name}.json")
        except OSError:
            return False
        return True

    def _insist(self, name: str, word: Mapping[str, Any]) -> None:
        """Says what is not said again by itself. A folder that is gone has nobody to hear it."""
        for _ in range(TRIES):
            if self._write(name, word) or not self.path.exists():
                return
            time.sleep(AGAIN_S)

    def _read(self, name: str) -> Word | None:
        """None also where the storage does not answer now, or not with all of it: it is asked again."""
        try:
            return dict(json.loads((self.path / f"{name}.json").read_text()))
        except (OSError, ValueError):
            return None
