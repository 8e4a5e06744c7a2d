"""What workers and the driver tell each other while they work: messages there, a request to stop back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Message = dict[str, Any]
POLL_S = 0.2
REPORT_EVERY_S = 0.2
MILESTONES = ("start", "epoch", "mirror", "note", "diverged")


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


def with_board(act: Callable[[Any], T], show: Callable[[Message], object], asked: Callable[[], bool]) -> T:
    """Does something of Ray's that workers report on while it goes on; returns what it returns, and raises likewise.

    Args:
        act: is given the board, and called on another thread: Ray Train and Ray Tune take INT over on the main one.
        show: is given every message.
        asked: whether the workers shall stop; is called again and again.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this process's own node, so that no other's loss takes it away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    ended: list[T] = []
    raised: list[BaseException] = []

    def go() -> None:
        try:
            ended.append(act(board))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=go, name="ray", daemon=True)

    def exchange() -> None:
        for message in ray.get(board.exchange.remote(asked())):
            show(message)

    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        exchange()
    for error in raised:
        raise error
    exchange()  # what came while the messages before were shown
    return ended[0]
