"""What a worker of Ray's runs. Only there torch and the rest of this package are loaded: Ray's others stay small."""

from __future__ import annotations

import os
import pickle
from typing import Any


def on_worker(given: dict[str, Any]) -> Any:
    """One worker of a Ray Train group; returns `work_together`'s outcomes.

    `given` holds the pickled plans, the board, and the driver's umask: Ray's own is for its files, not for a run's.
    """
    from ray.train.torch import get_device

    from trainer.board import BoardReport
    from trainer.plan import as_begun
    from trainer.ranks import Ranks
    from trainer.worker import work_together

    os.umask(given["umask"])
    plans = [as_begun(plan) for plan in pickle.loads(given["plans"])]
    ranks = Ranks.of_process_group(get_device(), plans[0].config.scale.timeout_s)
    return work_together(plans, ranks, BoardReport(given["board"]))
