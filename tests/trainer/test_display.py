import io

import pytest
from rich.console import Console

from trainer.display import Display, step_bar

STEP = {"phase": "train", "epoch": 12, "epochs": 50, "step": 12345, "done": 15000, "total": 60000, "loss": 0.1234}


@pytest.mark.parametrize("width", [80, 120])
def test_the_line_of_a_step_fits_its_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, record=True)
    console.print(step_bar({**STEP, "tiles_per_s": 1234.5}, width))
    (line,) = console.export_text().splitlines()
    assert line.rstrip().endswith("left")


def test_a_log_says_once_that_it_stops() -> None:
    stream = io.StringIO()
    with Display(Console(file=stream, width=80)) as display:
        display.waiting("starting Ray")
        display.show({"phase": "start", "lines": ["attempt 1 begins"]})
        display.stopping()
        display.stopping()
    assert stream.getvalue().splitlines() == [
        "starting Ray",
        "attempt 1 begins",
        "stopping at the next step, with a checkpoint",
    ]
