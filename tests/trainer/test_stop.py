import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from trainer import stop
from trainer.stop import STOP_SIGNALS, StopSignals

TAKEN_OVER = """
import os, signal, sys, time
from trainer.stop import STOP_SIGNALS, StopSignals

number = int(sys.argv[1])
with StopSignals() as requests:
    import numpy, torch

    torch.ones(1 << 20).sum()  # starts its threads
    signal.signal(number, lambda *_: os._exit(3))  # as a library that takes signals over
    for _ in range(50):
        os.kill(os.getpid(), number)
    time.sleep(0.5)
    sys.exit(0 if requests.asked() else 4)
"""


def wait_for(so: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 5
    while not so():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    wait_for(lambda: False)


def test_a_second_int_counts_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    handlers, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with StopSignals() as requests:
        assert not requests.asked()
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(requests.asked)
        now = 104.9
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(0.5)  # an interrupt would be here by now
        now = 105.1
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    assert signal.getsignal(signal.SIGINT) is handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_library_that_takes_signals_over_gets_none(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", TAKEN_OVER, str(int(number))], check=False)
    assert done.returncode == 0


def test_being_suspended_and_continued_is_no_request() -> None:
    """As by a batch system that gives a node to others for a while, or by Ctrl-Z and `fg`."""
    code = (
        "import sys; from trainer.stop import StopSignals\n"
        "with StopSignals() as requests: print('in', flush=True); input(); sys.exit(4 if requests.asked() else 0)"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    program.stdout.readline()
    for _ in range(3):
        program.send_signal(signal.SIGSTOP)
        time.sleep(2 * stop.POLL_S)
        program.send_signal(signal.SIGCONT)
        time.sleep(2 * stop.POLL_S)
    program.communicate("\n")
    assert program.returncode == 0
