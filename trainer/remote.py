"""What runs in Ray's processes. Only workers load torch and the rest of this package: the others stay small."""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import Any

Message = dict[str, Any]
REPORT_EVERY_S = 0.2
MILESTONES = ("start", "epoch", "mirror", "note", "diverged")


def on_worker(given: dict[str, Any]) -> Any:
    """One worker of a Ray Train group; returns `work_together`'s outcomes.

    `given` holds the pickled plans, the board, and the driver's umask: Ray's own is for its files, not for a run's.
    """
    from ray.train.torch import get_device

    from trainer.plan import as_begun
    from trainer.ranks import Ranks
    from trainer.worker import work_together

    os.umask(given["umask"])
    plans = [as_begun(plan) for plan in pickle.loads(given["plans"])]
    ranks = Ranks.of_process_group(get_device(), plans[0].config.scale.timeout_s)
    return work_together(plans, ranks, BoardReport(given["board"]))


class Board:
    """Beside the driver: workers put messages on it and learn whether a stop was asked for. Runs as a Ray actor."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False

    def put(self, message: Message) -> bool:
        """Adds a message; answers whether to stop."""
        self._messages.append(message)
        return self._stop

    def exchange(self, stop: bool) -> list[Message]:
        """Takes the messages, and passes on whether to stop."""
        self._stop = self._stop or stop
        taken, self._messages = self._messages, []
        return taken


class BoardReport:
    """A worker's way to the board. Answers from the last reply: a step never waits for the driver."""

    def __init__(self, board: Any):
        self._board = board
        self._replies: list[Any] = []
        self._stop = False
        self._last = 0.0
        self._one_at_a_time = threading.Lock()

    def __call__(self, message: Message) -> bool:
        """Sends a message (steps at most every 0.2 s, milestones always); answers whether a stop was asked for."""
        import ray

        with self._one_at_a_time:
            due = not self._replies and time.monotonic() - self._last >= REPORT_EVERY_S
            if due or message["phase"] in MILESTONES:
                self._last = time.monotonic()
                self._replies.append(self._board.put.remote(message))
            arrived: list[Any] = []
            if self._replies:
                arrived, self._replies = ray.wait(self._replies, num_returns=len(self._replies), timeout=0)
            self._stop = self._stop or any(ray.get(arrived))
            return self._stop
