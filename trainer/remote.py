"""What a worker of Ray's runs. Only there torch and the rest of this package are loaded: Ray's others stay small."""

from __future__ import annotations

import os
import pickle
from typing import Any


def on_worker(given: dict[str, Any]) -> Any:
    """One worker of a Ray Train group; returns the outcomes of what it does.

    `given` holds what that is, pickled; the seconds after which a collective operation is an error; the board; and the
    driver's umask: Ray's own is for its files, not for a run's.
    """
    from ray.train.torch import get_device

    from trainer.board import BoardReport
    from trainer.ranks import Ranks

    os.umask(given["umask"])
    act = pickle.loads(given["act"])
    ranks = Ranks.of_process_group(get_device(), given["timeout_s"])
    return act(ranks, BoardReport(given["board"]))
