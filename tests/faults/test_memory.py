"""Memory that runs out: an allocator that is refused it, and a process that the kernel kills for it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.command import Command
from tests.conftest import REPOSITORY, write_config
from tests.faults.ledger import Fault
from tests.faults.memory_cgroup import memory_cgroup
from tests.runs import wait_for_step
from tests.trainer.tiles.test_pack_killed import children, running, until
from tests.trainer.tiles.tissue import encoded, write
from trainer.rundir import RunDir
from trainer.tiles.pack import pack

MB = 1 << 20
SIDE = 1024
"""px of a tile: gathering a batch of 12 takes 38 MB, which the allocator asks of the system each time."""


def write_large_tiles(folder: Path, each: int) -> Path:
    """Two classes of one-coloured tiles."""
    for label, red in (("STR", 0), ("TUM", 255)):
        for n in range(each):
            image = Image.new("RGB", (SIDE, SIDE), (red, n, 128))
            write(folder / label / f"{n}.png", encoded(image, compress_level=1))
    return folder


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    pack(write_large_tiles(folder / "source", 24), folder / "store", processes=1)
    return folder / "store"


@pytest.fixture
def config(large_store: Path, tmp_path: Path) -> Path:
    options: dict[str, object] = {
        "data.external": {},
        "data.split": "random",
        "augment.crop_scale": [0.001, 0.001],
        "augment.stain": 0.0,
        "loop.epochs": 3,
        "loop.micro_batch": 8,
        "loop.checkpoint_every": 1,
    }
    return write_config(tmp_path / "config.yaml", (large_store, large_store), tmp_path / "runs", options)


IN_A_GATHER_THREAD = """
import resource, sys, threading
from pathlib import Path
from trainer.config import load_config
from trainer.plan import make_plan, write_run
from trainer.scale import this_machine
from trainer.tiles.loader import TileSet
from trainer.worker import work_alone

gather = TileSet.gather

def observed(*arguments):
    try:
        return gather(*arguments)
    except Exception:
        print("no memory in", threading.current_thread().name)
        raise

TileSet.gather = observed
plan, data, base = make_plan(load_config(Path(sys.argv[1]), ["--scale.workers", "1"]), this_machine())
write_run(plan, data, base)

def report(message):
    if message["phase"] == "start":  # the next that is allocated is what the gather thread reads ahead
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        room = int(status["VmData"].split()[0]) * 1024 + 16 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    print(*message.get("lines", []), sep="\\n")
    return False

(outcome,) = work_alone([plan], report)
print(outcome.status, outcome.message)
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.fault(14, "ulimit -d hit in a gather thread", "named as out of memory; bounded retries")
def test_a_gather_thread_that_gets_no_memory_is_named(fault: Fault, config: Path) -> None:
    done = python(IN_A_GATHER_THREAD, config)
    assert done.returncode == 0, done.stderr
    tries = done.stdout.count("out of memory with")
    assert done.stdout.index("no memory in gather") < done.stdout.index("out of memory with"), done.stdout
    assert "failed out of memory with 2 tiles at once, and fewer there cannot be" in done.stdout
    assert tries == 3, done.stdout
    fault.times, fault.figure = 1, f"{tries} tries: 8, 4, 2 tiles at once"


def refuse_more(pid: int) -> None:
    """From now on the system gives a process hardly more memory: a limit of `ulimit -d`, in the middle of its life."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    used = int(status["VmData"].split()[0]) * 1024
    resource.prlimit(pid, resource.RLIMIT_DATA, (used + 16 * MB, used + 16 * MB))


def wait_for_attempt(run: RunDir, number: int, command: Command) -> int | None:
    """The process of an attempt's first rank, once it has begun; None where the command ends before that."""
    deadline = time.monotonic() + 240
    while number not in run.attempts():
        if command.process.poll() is not None:
            return None
        assert time.monotonic() < deadline, f"attempt {number} has not begun"
        time.sleep(0.01)
    return int(run.attempts()[number]["pid"])


@pytest.mark.slow
@pytest.mark.fault(14, "a memory limit hit in a worker of Ray's (ulimit -d of its process)", "")
def test_a_worker_that_gets_no_memory_goes_on_with_fewer_tiles_at_once(fault: Fault, config: Path) -> None:
    fault.promise = "named as out of memory; goes on with half as many tiles at once, in the same batches"
    command, run = Command(config), RunDir(config.parent / "runs" / "small")
    wait_for_step(run, attempt=1, step=1)
    refuse_more(run.attempts()[1]["pid"])
    code, output = command.end()
    assert code == 0, output
    assert "out of memory with 8 tiles at once: goes on with 4, in the same batches" in " ".join(output.split())
    assert len(run.attempts()) == 2
    assert run.attempts()[2]["resumed_step"] > 0
    fault.times, fault.figure = (
        1,
        f"went on from step {run.attempts()[2]['resumed_step']} with 4 tiles at once, to its end",
    )


@pytest.mark.slow
@pytest.mark.fault(14, "workers that the kernel kills for want of memory (cgroup), each before its first step", "")
def test_a_worker_that_is_killed_for_memory_is_named(fault: Fault, config: Path) -> None:
    fault.promise = "named as out of memory; bounded retries; the run can go on"
    with memory_cgroup(16 * MB) as group:
        command, run = Command(config), RunDir(config.parent / "runs" / "small")
        attempt = 1
        while (pid := wait_for_attempt(run, attempt, command)) is not None:
            group.hold(pid)
            attempt += 1
        code, output = command.end()
        kills = group.kills
    print(output)
    assert code == 1
    assert kills == len(run.attempts()) == 4
    said = " ".join(output.split())
    assert "workers failed 4 times" in said
    assert "out of memory" in said
    fault.times, fault.figure = kills, f"{kills} kills, then exit 1"


@pytest.mark.fault(14, "ulimit -d hit in prepare", "named as out of memory; no tile is called damaged; nothing is left")
def test_prepare_that_gets_no_memory_is_named(fault: Fault, tmp_path: Path) -> None:
    write_huge_tiles(tmp_path / "source", 10)
    process = prepare(tmp_path)
    refuse_more(process.pid)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "could not be written: out of memory while" in said
    assert "was decoded" in said
    assert "nothing of it is left" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    fault.times, fault.figure = 1, "exit 1, in one line"


@pytest.mark.fault(14, "a decoder of prepare that the kernel kills for want of memory (cgroup)", "")
def test_a_decoder_that_is_killed_for_memory_is_named(fault: Fault, tmp_path: Path) -> None:
    fault.promise = "named as out of memory; nothing is left, no process either"
    write_huge_tiles(tmp_path / "source", 64)
    with memory_cgroup(16 * MB) as group:
        process = prepare(tmp_path)
        decoders = children(process.pid)
        group.hold(next(pid for pid in decoders if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()))
        _, said = process.communicate(timeout=120)
        assert group.kills == 1
    assert process.returncode == 1, said
    assert "a process that decodes was killed (out of memory?); nothing of it is left" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    until(lambda: not any(running(pid) for pid in decoders))
    fault.times, fault.figure = 1, "exit 1, in one line"


def write_huge_tiles(folder: Path, each: int) -> None:
    """Two classes of tiles of 36 MB: more than the allocator keeps for the next one."""
    for label, colour in (("STR", "pink"), ("TUM", "purple")):
        data = encoded(Image.new("RGB", (3500, 3500), colour), compress_level=1)
        for n in range(each):
            write(folder / label / f"{n}.png", data)


def prepare(folder: Path) -> subprocess.Popen[str]:
    """`python -m trainer prepare`, once it writes tiles."""
    command = [sys.executable, "-m", "trainer", "prepare", folder / "source", folder / "store"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: any(file.stat().st_size > 0 for file in folder.glob(".*unfinished*/*/tiles.npy")), process)
    return process
