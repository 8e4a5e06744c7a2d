"""Packing that is killed in the middle, as a whole or one of its decoders."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.tiles.test_pack import leftovers
from tests.trainer.tiles.tissue import dataset, encoded, write
from trainer.errors import UsageError
from trainer.tiles.pack import pack

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from pathlib import Path
from trainer.tiles.pack import pack
if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]), processes=2)
"""


def started(tmp_path, source, store):
    """A process that packs, once its decoders have begun to write."""
    program = write(tmp_path / "program.py", PROGRAM.encode())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, program, source, store], env=environment, stdout=subprocess.DEVNULL)
    until(lambda: any(file.stat().st_size > 0 for file in store.parent.glob(".*unfinished*/*/tiles.npy")), process)
    return process


def until(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def slow_source(tmp_path):
    """Large tiles, so that packing is caught in the middle."""
    root = tmp_path / "data"
    blank = encoded(Image.new("RGB", (1024, 1024)))
    for n in range(160):
        write(root / "AB"[n % 2] / f"{n}.png", blank)
    return root


def test_killed_in_the_middle_leaves_no_store_and_the_next_one_clears_up(tmp_path, slow_source):
    store = tmp_path / "store"
    process = started(tmp_path, slow_source, store)
    decoders = children(process.pid)
    with pytest.raises(UsageError, match="is being written by another process"):
        pack(slow_source, store)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not store.exists()
    assert leftovers(tmp_path)
    until(lambda: not any(running(pid) for pid in decoders))
    assert pack(dataset(tmp_path / "small"), store).meta.tiles == 8
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("number", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_in_the_middle_leaves_nothing_and_is_one_line(tmp_path, slow_source, number, code, word, send):
    command = [sys.executable, "-m", "trainer", "prepare", slow_source, tmp_path / "store"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: any(f.stat().st_size > 0 for f in tmp_path.glob(".*unfinished*/*/tiles.npy")), process)
    decoders = children(process.pid)
    send(process.pid, signal.Signals[number])
    assert process.communicate(timeout=60)[1] == f"{word}\n"
    assert process.returncode == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    until(lambda: not any(running(pid) for pid in decoders))


def test_a_decoder_that_is_killed_is_one_message(tmp_path, slow_source):
    program = PROGRAM.replace("    pack(", "    from trainer.errors import RunError\n    try: pack(").replace(
        "processes=2)", "processes=2)\n    except RunError as error: sys.exit(str(error))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, write(tmp_path / "p.py", program.encode()), slow_source, tmp_path / "store"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: any(f.stat().st_size > 0 for f in tmp_path.glob(".*unfinished*/*/tiles.npy")), process)
    decoder = next(pid for pid in children(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(decoder, signal.SIGKILL)
    message = process.communicate(timeout=60)[1]
    assert "a process that decodes was killed" in message
    assert "Traceback" not in message
    assert not (tmp_path / "store").exists()
    assert not leftovers(tmp_path)
