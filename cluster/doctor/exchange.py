"""What the nodes under examination tell each other, and how their clocks differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.allocation import Allocation
from cluster.doctor.limited import Later
from cluster.rendezvous import Rendezvous, Word

BEAT_S = 0.2
SILENT_S = 30.0
FOLDER_S = 30.0
LEAVE_S = 10.0
LEFT = "left"


class SilenceError(Exception):
    """The first node has said nothing for too long, or not what was waited for."""


@dataclass
class ClockBounds:
    """Between what a node's clock is ahead of ours (seconds); each exchange of words may narrow it."""

    low: float = float("-inf")
    high: float = float("inf")

    def narrow(self, asked: float, theirs: float, heard: float) -> None:
        """`asked` and `heard` are ours, `theirs` was read in between: Cristian's algorithm, many exchanges met.

        F. Cristian, Probabilistic clock synchronization, Distributed Computing 3 (1989).
        """
        self.low = max(self.low, theirs - heard)
        self.high = min(self.high, theirs - asked)


@dataclass
class Exchange:
    """One node's side: it beats, so that others see it live and may compare clocks; it tells, and hears.

    Every node writes into the folder all the time, which is also what makes it see soon what others have written.
    """

    allocation: Allocation
    meeting: Rendezvous
    clocks: dict[int, ClockBounds] = field(default_factory=dict)
    _beats: list[float] = field(default_factory=list)
    _first: tuple[int, float] = field(default=(-1, 0.0))
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Opens the folder and begins to beat.

        Raises:
            OSError: where the folder cannot be made or written to.
        """
        self.meeting.open()
        self._first = (-1, time.monotonic())
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def tell(self, topic: str, word: Word) -> None:
        """Says something on a topic, which `hear` and `hear_all` find."""
        Later(lambda: self.meeting.publish(self.allocation.rank, word, topic), FOLDER_S).result()

    def hear(self, topic: str, limit_s: float) -> Word:
        """What the first node says on a topic.

        Raises:
            SilenceError: where it does not in `limit_s`, has ended, or has given no sign of life for long.
        """
        deadline = time.monotonic() + limit_s
        while (word := self._word_of(0, topic)) is None:
            if time.monotonic() > deadline or self._dismissed():
                raise SilenceError(f"the first node has said nothing in {self.meeting.path}")
            time.sleep(BEAT_S)
        return word

    def hear_all(self, topic: str, ranks: Sequence[int], limit_s: float) -> dict[int, Word]:
        """What these nodes say on a topic; those that do not in `limit_s` are left out."""
        deadline = time.monotonic() + limit_s
        words: dict[int, Word] = {}
        while len(words) < len(ranks) and time.monotonic() < deadline:
            found = {rank: self._word_of(rank, topic) for rank in ranks if rank not in words}
            words.update({rank: word for rank, word in found.items() if word is not None})
            time.sleep(BEAT_S)
        return words

    def stay(self) -> None:
        """Until the first node dismisses this one."""
        while not self._dismissed():
            time.sleep(BEAT_S)

    def leave(self, ranks: Sequence[int]) -> None:
        """Ends it: the first node dismisses the others (`ranks`), waits until they have left, and clears the folder."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
        with suppress(OSError):
            self.tell(LEFT, {})
            if self.allocation.rank == 0:
                self.meeting.close_cluster()
                self.hear_all(LEFT, ranks, LEAVE_S)
                self.meeting.remove()

    def _word_of(self, rank: int, topic: str) -> Word | None:
        return Later(lambda: self.meeting.word_of(rank, topic), FOLDER_S).result()

    def _dismissed(self) -> bool:
        """Whether the first node has ended, or has given no sign of life for long by our own clock."""
        silent = self._first[0] >= 0 and time.monotonic() - self._first[1] > SILENT_S
        return silent or Later(lambda: self.meeting.over() or not self.meeting.path.is_dir(), FOLDER_S).result()

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        """Says our time and which beat of the first node we saw last; the first node takes the others' times."""
        if self.allocation.rank != 0 and (first := self.meeting.word_of(0)) and first["beat"] > self._first[0]:
            self._first = (first["beat"], time.monotonic())
        now = time.time()
        word = {"node": self.allocation.node, "beat": len(self._beats), "time": now, "seen": self._first[0]}
        self._beats.append(now)
        self.meeting.publish(self.allocation.rank, word)
        if self.allocation.rank == 0:
            self._compare_clocks()

    def _compare_clocks(self) -> None:
        for rank in range(1, self.allocation.nodes):
            word = self.meeting.word_of(rank)
            if word is not None and word["seen"] >= 0:
                bounds = self.clocks.setdefault(rank, ClockBounds())
                bounds.narrow(self._beats[word["seen"]], word["time"], time.time())
