"""What Ray Train does alone, by the pattern of its documentation, with faults that this project promises to survive.

A small network learns from drawn numbers in a fixed order, so that every end can be compared bit by bit. Nothing of
this project's takes part but the command that ends processes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from benchmarks.record import RESULTS, write
from cluster.processes import kill_all_with

EPOCHS, KILLED_AT = 8, 4
STEPS = 5
STEP_S = 0.1
"""So that a driver can be killed between two epochs of so small a network."""
NAME = "toy"
MARK = "PLAIN_RAY"
STATE, MANAGER = "state.pt", "checkpoint_manager_snapshot.json"
FLIPS = 100
LIMIT_S = 300.0


# What Ray's documentation shows ---------------------------------------------------------------------------------


def train(config: dict[str, Any]) -> None:
    """The training function: goes on from Ray's checkpoint, if there is one, and reports one after each epoch."""
    import ray.train
    import ray.train.torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    network = ray.train.torch.prepare_model(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    start = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]
    with (Path(config["folder"]) / f"starts-{rank}").open("a") as starts:
        starts.write(f"{os.getpid()} {start}\n")
    for epoch in range(start + 1, EPOCHS + 1):
        for step in range(STEPS):
            time.sleep(STEP_S)
            drawn = torch.Generator().manual_seed(1000 * epoch + 10 * step + rank)
            loss = nn.functional.mse_loss(network(torch.randn(8, 16, generator=drawn)), torch.zeros(8, 4))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                states = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                torch.save(states, Path(folder) / STATE)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"epoch": epoch, "loss": loss.item()}, checkpoint=checkpoint)


def drive(folder: Path) -> None:
    """The driver: two workers, up to three failures, every checkpoint kept."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=os.environ[MARK])
    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=NAME, storage_path=str(folder / "storage"), failure_config=FailureConfig(max_failures=3)
        ),
    ).fit()


# The faults -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One fault, and what came of it."""

    number: int
    injected: str
    happened: str = ""
    held: bool = False
    figure: str = ""


@dataclass
class Driver:
    """The driver's program, started in a folder; with a Ray of its own, which ends with it."""

    folder: Path
    temporary: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="pr-", dir="/tmp"))

    def __post_init__(self) -> None:
        self.output = Path(self.temporary) / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.plain_ray", "--drive", str(self.folder)],
                env={**os.environ, MARK: self.temporary},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL of the driver; what it leaves behind is ended too."""
        self.process.kill()
        self.end()

    def end(self) -> tuple[int, str]:
        """Its exit code, 124 where it went on beyond the limit; and what it printed."""
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = 124
        kill_all_with(MARK, self.temporary)
        said = self.output.read_text()
        shutil.rmtree(self.temporary, ignore_errors=True)
        return code, said


class Folder:
    """Where one case happens."""

    def __init__(self, parent: Path, name: str):
        self.path = parent / name
        self.path.mkdir()

    def states(self) -> list[Path]:
        """The files of the checkpoints, oldest first."""
        return sorted((self.path / "storage" / NAME).glob(f"checkpoint_*/{STATE}"))

    def wait_for(self, checkpoints: int) -> None:
        """Until there are so many."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.states()) < checkpoints:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path} has no {checkpoints} checkpoints")
            time.sleep(0.1)

    def starts(self) -> list[tuple[int, int]]:
        """Of every start of the first worker: its pid, and the epoch that it went on from."""
        file = self.path / "starts-0"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(pid), int(epoch)) for pid, epoch in map(str.split, lines)]

    def end(self) -> tuple[int, str]:
        """The epoch of the last checkpoint, and a digest of its weights."""
        try:
            state = torch.load(self.states()[-1])
        except Exception as error:
            return 0, type(error).__name__
        weights = b"".join(tensor.numpy().tobytes() for tensor in state["network"].values())
        return state["epoch"], hashlib.sha256(weights).hexdigest()


class Faults:
    """All of them, against a run that nobody disturbs, and one that was killed half-way."""

    def __init__(self, parent: Path):
        self.parent = parent
        alone = Folder(parent, "alone")
        code, said = Driver(alone.path).end()
        if code != 0:
            raise RuntimeError(f"undisturbed, it fails:\n{said}")
        self.expected = alone.end()
        self.half = Folder(parent, "half")
        driver = Driver(self.half.path)
        self.half.wait_for(KILLED_AT)
        driver.kill()
        if not KILLED_AT <= self.half.end()[0] < EPOCHS:
            raise RuntimeError(f"killed at the end of epoch {self.half.end()[0]}, not half-way")
        self.kept = parent / "kept"
        shutil.copytree(self.half.path, self.kept)

    def again(self) -> Folder:
        """The run as it was when it was killed, in its own place: Ray's files may say where that is."""
        shutil.rmtree(self.half.path)
        shutil.copytree(self.kept, self.half.path)
        return self.half

    def told(self, row: Row, folder: Folder, code: int, said: str) -> Row:
        """What came of a case whose driver was to go on to the end."""
        epoch, digest = folder.end()
        same = (epoch, digest) == self.expected
        starts = [start for _, start in folder.starts()]
        row.held = code == 0 and same
        row.happened = f"exit code {code}; " + (
            "ended as undisturbed" if same else f"last epoch {epoch}, other weights"
        )
        if code != 0:
            row.happened = f"exit code {code}: {_last_error(said)}"
        row.figure = f"starts from epochs {starts}, of {EPOCHS}"
        return row

    def worker_killed(self) -> Row:
        """1."""
        folder = Folder(self.parent, "worker")
        driver = Driver(folder.path)
        folder.wait_for(KILLED_AT)
        os.kill(folder.starts()[0][0], signal.SIGKILL)
        return self.told(Row(1, "SIGKILL of a worker"), folder, *driver.end())

    def driver_killed(self) -> Row:
        """4."""
        folder = self.again()
        return self.told(Row(4, "SIGKILL of the driver, same command again"), folder, *Driver(folder.path).end())

    def truncated(self) -> Row:
        """9."""
        folder = self.again()
        newest = folder.states()[-1]
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
        row = self.told(Row(9, "newest checkpoint truncated"), folder, *Driver(folder.path).end())
        row.figure += f"; {len(folder.states()) - 1} good ones beside it"
        return row

    def flipped(self) -> Row:
        """10."""
        intact = self.again().states()[-1].read_bytes()
        noticed = 0
        draw = random.Random(0)
        with tempfile.TemporaryDirectory() as parent:
            file = Path(parent) / STATE
            for _ in range(FLIPS):
                data = bytearray(intact)
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                file.write_bytes(data)
                try:
                    torch.load(file)
                except Exception:
                    noticed += 1
        happened = "torch.load takes the others without a word" if noticed < FLIPS else "all are noticed"
        return Row(10, "one bit flipped in a checkpoint", happened, noticed == FLIPS, f"{noticed} of {FLIPS} noticed")

    def manager_truncated(self) -> Row:
        """11, truncated."""
        folder = self.again()
        file = folder.path / "storage" / NAME / MANAGER
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return self.told(Row(11, f"{MANAGER} truncated"), folder, *Driver(folder.path).end())

    def manager_deleted(self) -> Row:
        """11, deleted."""
        folder = self.again()
        (folder.path / "storage" / NAME / MANAGER).unlink()
        return self.told(Row(11, f"{MANAGER} deleted"), folder, *Driver(folder.path).end())

    def started_twice(self) -> Row:
        """15."""
        folder = Folder(self.parent, "twice")
        drivers = [Driver(folder.path), Driver(folder.path)]
        codes = [driver.end()[0] for driver in drivers]
        trained = len(folder.starts())
        row = Row(15, "one name started twice at once", f"exit codes {codes}", sorted(codes) == [0, 1] and trained == 1)
        row.figure = f"{trained} trained; {len(folder.states())} checkpoints of {EPOCHS} epochs in one folder"
        return row


def _last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if "Error" in line and not line.startswith(" ")]
    return lines[-1][:160] if lines else "no word of why"


def show(rows: list[Row]) -> None:
    """As a table."""
    table = Table("", "injected", "what happened", "held", "figure", box=None, padding=(0, 2, 1, 0))
    for row in rows:
        table.add_row(str(row.number), row.injected, row.happened, "held" if row.held else "not held", row.figure)
    Console().print(table)


def main() -> None:
    """Measures, shows and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--drive", type=Path, metavar="FOLDER", help="be the driver of a run there (used by this program)"
    )
    if (folder := parser.parse_args().drive) is not None:
        drive(folder)
        return
    with tempfile.TemporaryDirectory() as parent:
        faults = Faults(Path(parent))
        cases: list[Callable[[], Row]] = [
            faults.worker_killed,
            faults.driver_killed,
            faults.truncated,
            faults.flipped,
            faults.manager_truncated,
            faults.manager_deleted,
            faults.started_twice,
        ]
        rows = [case() for case in track(cases, "Faults")]
    show(rows)
    write(RESULTS / "plain_ray.json", {"faults": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
