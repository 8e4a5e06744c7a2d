"""A storage that does not answer ends the process, and one that was suspended is given its time again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from trainer import stall

PROGRAM = """
import sys, time
from pathlib import Path
from trainer import stall
stall.SUSPENDED_S, stall.SAYING_S = 1.0, 0.5
with stall.answered_within(2.0, Path("/somewhere")):
    print("waits", flush=True)
    time.sleep(float(sys.argv[1]))
print("answered")
"""


def waits(seconds: float, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(seconds)], stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "waits\n"
    return process


def test_it_ends_and_says_why() -> None:
    output, error = (process := waits(60)).communicate(timeout=30)
    assert process.returncode == stall.FAILED
    assert "/somewhere: the storage has not answered for 2 s" in error
    assert output == ""


def test_it_ends_where_nobody_takes_its_words() -> None:
    """What it says may go to the storage that does not answer; here, to a full pipe."""
    fill = (
        "import fcntl, os, sys\nfcntl.fcntl(2, fcntl.F_SETFL, os.O_NONBLOCK)\n"
        "try:\n    while True: os.write(2, b'x' * 4096)\nexcept BlockingIOError: pass\n"
        "fcntl.fcntl(2, fcntl.F_SETFL, 0)"
    )
    with waits(60) as process:
        with Path(f"/proc/{process.pid}/fd/2").open("wb", buffering=0) as pipe:
            subprocess.run([sys.executable, "-c", fill], stderr=pipe, check=True)
        assert process.wait(30) == stall.FAILED


def test_time_in_which_it_was_suspended_does_not_count() -> None:
    process = waits(4)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)  # the limit, and more than would be a late timer
    process.send_signal(signal.SIGCONT)
    output, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert output == "answered\n"
