"""What a start makes of what an earlier one has left, written by hand: no Ray here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.config import load_config
from trainer.data import RunData
from trainer.ledger import Ledger, Record
from trainer.loop import scores
from trainer.predict import write_predictions
from trainer.rundir import RunDir, write_json, write_json_lines
from trainer.scale import this_machine
from trainer.search_plan import SearchPlan, make_search_plan

Make = Callable[..., Path]


class Left:
    """A search as an earlier start left it."""

    def __init__(self, config: Path):
        self.config = config
        self.plan: SearchPlan
        self.data: RunData
        self.plan, self.data, _ = make_search_plan(load_config(config), this_machine())
        self.search = self.plan.search
        self.search.trials_dir.mkdir(parents=True)
        write_json(self.search.search_file, self.plan.description(self.data))
        self.ledger = Ledger(self.plan.metric, self.plan.mode)

    def trial(self, number: int, status: str, right: float = 0.5, epochs: int = 2, **known: Any) -> RunDir:
        """A trial with so many epochs behind it; done, with predictions of which this share is right."""
        run, parameters = self.search.trial(number), self.plan.known_parameters()[number - 1]
        record = self.plan.record(run, run.name, number, parameters)
        run.path.mkdir()
        logits = self._logits(right)
        found = scores(logits, self.data.tiles("val").labels)
        write_json_lines(run.metrics_file, ({"epoch": epoch, **found} for epoch in range(1, epochs + 1)))
        if status == "done":
            write_predictions(
                run.predictions_file("val"), self.data.index("val"), logits, self.data.classes, "step-00000001-a0001"
            )
        value = found[self.plan.metric] if epochs else None
        self.ledger.add(run, Record(**{**vars(record), "status": status, "epoch": epochs, "value": value, **known}))
        return run

    def tune(self, *flags: str) -> int:
        """The same command again."""
        return main(["tune", str(self.config), *flags])

    def _logits(self, right: float) -> Any:
        labels = self.data.tiles("val").labels
        called = np.where(np.arange(len(labels)) < right * len(labels), labels, (labels + 1) % 9)
        return np.eye(9, dtype=np.float32)[called]


@pytest.fixture
def leave(make: Make) -> Callable[..., Left]:
    return lambda **options: Left(make(**options))


def hparams(run: RunDir) -> list[Path]:
    return list(run.tensorboard_dir.glob("*.hparams"))


@pytest.mark.parametrize("known", [1, 2], ids=["first", "last"])
def test_a_kill_between_a_trials_end_and_the_choice_leaves_no_old_choice(
    leave: Callable[..., Left], known: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed when trial 2 had ended, and the choice, if there was one, was of trial 1 alone."""
    left = leave(**{"search.trials": 2})
    left.trial(1, "done", right=0.2)
    if known == 2:
        assert left.tune("--search.trials", "1") == 0
        assert left.search.read()["choice"]["of"] == 1
    better = left.trial(2, "done", right=0.9)
    assert left.tune() == 0
    choice = left.search.read()["choice"]
    assert (choice["of"], choice["best"]) == (2, "0002")
    assert len(hparams(better)) == 1
    assert "best: trial 0002" in capsys.readouterr().out
    assert left.tune() == 0
    assert len(hparams(better)) == 1, "once"
