"""A training that goes on epoch by epoch, as it is asked to, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from trainer.loop import Outcome
from trainer.rundir import Json
from trainer.worker import Report

WAITING: Json = {"phase": "waiting"}
STEPS = ("epoch", "diverged")
Train = Callable[[Report, Callable[[], bool]], list[Outcome]]
"""Trains some runs, given how to report and whether to stop."""


class Stepwise:
    """Each `next` lets the training go on to the end of a run's epoch, or of a run, or to its own."""

    def __init__(self, train: Train, report: Report):
        self._train, self._pass_on = train, report
        self._reached: SimpleQueue[Json | list[Outcome] | BaseException] = SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Json | list[Outcome]:
        """The message of the next epoch or divergence; at the end, how each run ended. Raises what training raised."""
        self._go_on.release()
        reached = self._reached.get()
        if isinstance(reached, BaseException):
            raise reached
        return reached

    def end(self) -> None:
        """Ends the training, with a checkpoint, if it has not ended."""
        self._stop.set()
        self._go_on.release()
        self._thread.join()

    def _run(self) -> None:
        self._go_on.acquire()
        try:
            self._reached.put(self._train(self._report, self._asked))
        except BaseException as error:  # it is raised where the next epoch is awaited
            self._reached.put(error)

    def _report(self, message: Json) -> bool:
        asked = self._asked(message)
        if message["phase"] in STEPS and not asked:
            self._reached.put(message)
            self._go_on.acquire()
        return self._stop.is_set()

    def _asked(self, message: Json = WAITING) -> bool:
        """Passes a message on; whether to stop."""
        if self._pass_on(message):
            self._stop.set()
        return self._stop.is_set()
