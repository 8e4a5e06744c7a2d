import io

from rich.console import Console

from trainer import progress
from trainer.progress import say, track


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100), stream


def test_plain_lines_come_at_intervals_and_at_the_end(monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    where, stream = console(terminal=False)
    with track("Packing [NCT]", 10, console=where, every_s=30) as advance:
        for _ in range(10):
            advance(1)
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("Packing [NCT]: 3 of 10 tiles (30 %)")
    assert "s left" in lines[0]
    assert lines[-1].startswith("Packing [NCT]: 10 of 10 tiles (100 %)")
    assert "left" not in lines[-1]


def test_nothing_to_do_is_no_division_by_zero():
    where, stream = console(terminal=False)
    with track("Packing", 0, console=where):
        pass
    assert "0 of 0 tiles" in stream.getvalue()


def test_a_terminal_gets_a_bar_with_a_rate():
    where, stream = console(terminal=True)
    with track("Packing [NCT]", 2000, console=where) as advance:
        for _ in range(20):
            advance(100)
    assert "Packing [NCT]" in stream.getvalue()
    assert "2,000 of 2,000" in stream.getvalue()
    assert "tiles/s" in stream.getvalue()


def test_text_is_said_as_it_is():
    where, stream = console(terminal=False)
    text = "[bold] :smile: " + "long " * 50
    say(text, where)
    assert stream.getvalue() == text + "\n"
