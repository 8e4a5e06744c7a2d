"""The other nodes of a cluster, as its head hears of them."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from types import TracebackType

from cluster.node import BEAT_S, POLL_S, Node, NodeError
from cluster.rendezvous import Word

SILENT_AFTER_S = 30.0
FAREWELL_S = 20.0
GONE = ("failed", "ended")


class Others:
    """All nodes but the first, by what each has last said of itself."""

    def __init__(self, node: Node):
        self._meeting = node.meeting
        self._ranks = range(1, node.allocation.nodes)
        self._beats: dict[int, tuple[int, float]] = {}
        self._lost: set[int] = set()

    def joined(self) -> bool:
        """Whether all are in."""
        return all(_state(word) == "joined" for word in self._words().values())

    def check(self) -> None:
        """Raises a NodeError in the words of one that has failed, or has gone already."""
        for rank, word in self._words().items():
            if word is not None and word["state"] in GONE:
                raise NodeError(word["why"] or f"{_name(rank, word)} has ended")

    def missing(self) -> list[str]:
        """A line for each that is not in."""
        words = self._words().items()
        return [f"  {_name(rank, word)}: {_state(word)}" for rank, word in words if _state(word) != "joined"]

    def news(self) -> list[str]:
        """A line for each that has failed or fallen silent since the last call."""
        lines = []
        for rank, word in self._words().items():
            if rank in self._lost:
                continue
            if _state(word) in GONE:
                lines.append(f"{_name(rank, word)} is lost: {word and word['why']}")
            elif (silent := self._silent_s(rank, word)) > SILENT_AFTER_S:
                lines.append(f"{_name(rank, word)} has given no sign of life for {silent:.0f} s")
            else:
                continue
            self._lost.add(rank)
        return lines

    def wait_for_end(self) -> None:
        """Until all have taken leave, but for those that were lost before."""
        deadline = time.monotonic() + FAREWELL_S
        while time.monotonic() < deadline:
            words = self._words().items()
            if all(rank in self._lost or word is None or word["state"] == "ended" for rank, word in words):
                return
            time.sleep(POLL_S)

    def _words(self) -> dict[int, Word | None]:
        return {rank: self._meeting.word_of(rank) for rank in self._ranks}

    def _silent_s(self, rank: int, word: Word | None) -> float:
        """How long a node has said nothing new, by our own clock."""
        beats = word["beats"] if word else 0
        known, since = self._beats.setdefault(rank, (beats, time.monotonic()))
        if beats != known:
            self._beats[rank] = (beats, time.monotonic())
            return 0.0
        return time.monotonic() - since


class Watch:
    """Tells the others that this node lives, and hears of them, beside the work: a storage that hangs holds it not up.

    While the context lasts.
    """

    def __init__(self, node: Node, others: Others):
        self._node, self._others = node, others
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(BEAT_S)

    def news(self) -> list[str]:
        """What `Others.news` has said since the last call."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _watch(self) -> None:
        while not self._over.wait(BEAT_S):
            self._node.tell("running")
            for line in self._others.news():
                self._lines.put(line)


def _state(word: Word | None) -> str:
    return str(word["state"]) if word else "no word from it"


def _name(rank: int, word: Word | None) -> str:
    return f"node {word['node']}" if word else f"node number {rank}"
