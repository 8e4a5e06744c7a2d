"""What a person sees while a run trains: a live line in a terminal, plain lines in a log."""

from __future__ import annotations

from datetime import timedelta

from rich.progress_bar import ProgressBar
from rich.table import Table

from trainer.live import LiveDisplay
from trainer.progress import say
from trainer.rundir import Json

BAR_WIDTH = 30


class Display(LiveDisplay):
    """Shows the messages of a run as they come: starts, steps, evaluations, epochs."""

    STOPPING = "stopping at the next step, with a checkpoint"

    def show(self, message: Json) -> None:
        """Shows one message."""
        if message["phase"] in ("start", "mirror", "note"):
            for line in message["lines"]:
                say(line, self.console)
            if self._live:
                self.waiting("the first step")
        elif message["phase"] == "epoch":
            say(epoch_line(message["record"]), self.console)
        elif message["phase"] == "diverged":
            pass  # it is said at the end
        elif self._live:
            self._live.update(step_bar(message, self.console.width))
        else:
            self._say_now_and_then(step_line(message))


class PredictionDisplay(Display):
    """The same for predictions of new tiles."""

    STOPPING = "stopping; what is predicted so far is kept, but for the last seconds"


def epoch_line(record: Json) -> str:
    """An epoch that has ended, in one line."""
    return (
        f"epoch {record['epoch']:>3}  train loss {record['train/loss']:.4f}  val loss {record['val/loss']:.4f}  "
        f"val accuracy {record['val/accuracy']:.4f}  balanced {record['val/balanced_accuracy']:.4f}  "
        f"{record['tiles_per_s']:,.0f} tiles/s"
    )


def step_line(message: Json) -> str:
    """How far a run is, in one line."""
    if message["phase"] == "predict":
        left = timedelta(seconds=round((message["total"] - message["done"]) / message["tiles_per_s"]))
        rate = f"{message['tiles_per_s']:,.0f} tiles/s"
        return f"predicted {message['done']:,} of {message['total']:,} tiles  {rate}  {left} left"
    if message["phase"] != "train":
        return f"evaluating {message['phase']}: {message['done']:,} of {message['total']:,} tiles"
    left = timedelta(seconds=round((message["total"] - message["done"]) / message["tiles_per_s"]))
    return (
        f"epoch {message['epoch']}/{message['epochs']}  step {message['step']}  loss {message['loss']:.4f}  "
        f"{message['tiles_per_s']:,.0f} tiles/s  {left} left"
    )


def step_bar(message: Json, width: int) -> Table:
    """A bar as long as the line beside it leaves room for."""
    line = step_line(message)
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(message["total"], message["done"], width=max(5, min(BAR_WIDTH, width - len(line) - 2))), line
    )
    return row
