"""Training over a real, private Ray: stopped, killed, refused, resumed; and every bad input."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.command import Command
from tests.conftest import write_config
from tests.runs import trained_alone, wait_for_step, weights
from trainer.__main__ import main
from trainer.checkpoint import listed
from trainer.config import load_config
from trainer.plan import make_plan, trainable
from trainer.rundir import RunDir
from trainer.scale import this_machine

STEPS = 18
OPTIONS: dict[str, object] = {
    "model.unfrozen_depth": 1,
    "loop.epochs": 3,
    "scale.workers": 2,
    "augment.input_size": 64,
}


def wait_until_caught(pid: int, number: signal.Signals) -> None:
    """Until a process has a handler for a signal."""
    deadline = time.monotonic() + 60
    caught = 0
    while not caught >> (number - 1) & 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        caught = int(status["SigCgt"], 16)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_stopped_and_killed_it_goes_on_and_ends_bit_identical(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """TERM to the driver's whole process group, then SIGKILL of a worker; against a run left alone, without Ray."""
    storage = tmp_path / "runs"
    every_step = {**OPTIONS, "loop.checkpoint_every": 1}
    config = write_config(tmp_path / "disturbed.yaml", stores, storage, {**every_step, "run.name": "disturbed"})
    run = RunDir(storage / "disturbed")

    command = Command(config)
    wait_for_step(run, attempt=1, step=2)
    code, output = Command(config).end()
    assert code == 1
    assert f"process {command.process.pid}" in output
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.end()
    assert code == 75
    assert "the same command goes on" in output
    stopped_at = listed(run)[0].step

    command = Command(config)
    wait_for_step(run, attempt=2, step=stopped_at + 1)
    assert run.attempts()[2]["resumed_step"] == stopped_at
    os.kill(run.attempts()[2]["pid"], signal.SIGKILL)
    code, output = command.end()
    assert code == 0, output
    assert len(run.attempts()) == 3
    assert run.attempts()[3]["resumed_step"] > stopped_at

    assert "python -m analysis report" in output

    alone = write_config(tmp_path / "alone.yaml", stores, storage, {**OPTIONS, "run.name": "alone"})
    assert weights(run, STEPS) == weights(trained_alone(alone), STEPS)

    code, output = Command(config).end()
    assert code == 0
    assert "nothing to do" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_every_stop_signal_stops_a_run(stores: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {"loop.checkpoint_every": 1})
    run = RunDir(tmp_path / "runs" / "small")

    def interrupt() -> None:
        wait_for_step(run, attempt=1, step=1)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as `timeout` does: to the process, and to its group

    before = signal.getsignal(number)
    threading.Thread(target=interrupt, daemon=True).start()
    assert main(["train", str(config), "--debug", "--loop.epochs", "200"]) == 75
    assert signal.getsignal(number) is before, "the handler is put back"


@pytest.mark.usefixtures("nothing_is_left")
def test_a_stop_before_the_first_step_is_a_stop(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """While everything is still being loaded: a batch system must not take it for a failure."""
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {})
    command = Command(config)
    wait_until_caught(command.process.pid, signal.SIGTERM)
    command.process.terminate()
    code, output = command.end()
    assert code == 75
    assert "before its first step" in output
    assert not (tmp_path / "runs" / "small" / "lock.json").exists()


def test_fresh_moves_the_old_run_aside(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {"loop.epochs": 1}))
    assert main(["train", config, "--debug"]) == 0
    assert main(["train", config, "--debug", "--run.seed", "8"]) == 2
    assert "run.seed: was 7, is 8" in capsys.readouterr().err
    assert main(["train", config, "--debug", "--loop.micro_batch", "4"]) == 2
    assert "was begun with 12, and 4" in capsys.readouterr().err
    other = ["--run.seed", "8", "--loop.micro_batch", "4"]
    assert main(["train", config, "--debug", *other, "--fresh"]) == 0
    assert RunDir(tmp_path / "runs" / "small").read_identity()["micro_batch"] == 4
    assert len(list((tmp_path / "runs").glob("small*"))) == 2


def test_a_dry_run_says_all_and_does_nothing(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {}))
    assert main(["train", config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in ("unfrozen_depth: 0", "elsewhere", "TUM", f"{2048 * 9 + 9:,} parameters learn", "checkpoint takes"):
        assert words in said
    assert not (tmp_path / "runs").exists()


def test_the_headline_warns_of_training_tiles_in_an_external_set(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {"loop.epochs": 1}))
    monkeypatch.setattr("trainer.data.RunData.warnings", lambda _: ["warning: these are the same"])
    for flag in ("--dry-run", "--debug"):
        assert main(["train", config, flag]) == 0
        assert "warning: these are the same" in capsys.readouterr().out


def test_the_headline_warns_of_an_average_that_is_longer_than_the_run(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", {}))
    assert main(["train", config, "--dry-run", "--optim.ema", "0.99"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"averages over about 100 steps, and the run takes 12: {0.99**12:.0%} of what is evaluated" in said
    for flags in (["--optim.ema", "0.5"], []):
        assert main(["train", config, "--dry-run", *flags]) == 0
        assert "optim.ema: 0." not in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "copies"), [([], 3), (["--optim.name", "sgd"], 2), (["--optim.ema", "0.5"], 4)])
def test_what_a_checkpoint_takes_is_known_beforehand(
    stores: tuple[Path, Path], tmp_path: Path, flags: list[str], copies: int
) -> None:
    """Against a real one's files, to 10 %."""
    options: dict[str, object] = {"loop.epochs": 1, "loop.batch_size": 30}
    config = str(write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options))
    plan, _, _ = make_plan(load_config(Path(config), flags), this_machine())
    assert trainable(plan) == (2048 * 9 + 9, copies * 4 * (2048 * 9 + 9))
    assert main(["train", config, "--debug", *flags]) == 0
    (checkpoint,) = listed(RunDir(tmp_path / "runs" / "small"))
    taken = sum(file.stat().st_size for file in checkpoint.path.iterdir())
    assert taken == pytest.approx(trainable(plan)[1], rel=0.1)


@pytest.mark.parametrize(
    ("options", "flags", "words"),
    [
        ({}, ["--optim.lx", "1"], ["optim.lx", "did you mean optim.lr?"]),
        ({}, ["--model.unfrozen_depth", "7"], ["model.unfrozen_depth", "5"]),
        ({}, ["--loop.batch_size", "2", "--scale.workers", "3"], ["loop.batch_size", "scale.workers"]),
        (
            {"augment.input_size": 32, "model.unfrozen_depth": 1, "model.norm": "local"},
            ["--loop.batch_size", "2", "--scale.workers", "2"],
            ["loop.batch_size", "BatchNorm"],
        ),
        ({"data.tiles": "no/such/store"}, [], ["no/such/store", "prepare"]),
        ({"data.external": {"x": "no/such/store"}}, [], ["no/such/store"]),
        ({"data.class_map": {"TUM": "STR"}, "data.external": {}}, ["--data.split", "source"], ["data.split: source"]),
        ({"model.weights": "imagenet1k_v2"}, [], ["fetch-weights imagenet1k_v2"]),
        ({"model.weights": "no/such/file.pth"}, [], ["no/such/file.pth"]),
        ({"model.norm": "sync"}, [], ["model.norm: sync", "GPU"]),
        ({"scale.gpu": True}, [], ["scale.gpu", "driver"]),
        ({"data.class_names": "no/such/names.yaml"}, [], ["no/such/names.yaml"]),
        ({"run.name": "../escape"}, [], ["run.name"]),
        ({}, ["optim.lr=3", "-loop.epochs", "9"], ["optim.lr", "loop.epochs"]),
        ({}, ["--optim.lr", "inf"], ["optim.lr", "finite"]),
        ({}, ["--optim.warmup_epochs", "2"], ["optim.warmup_epochs, loop.epochs", "must end", "2 and 2"]),
        ({"optim.schedule": "onecycle"}, ["--optim.warmup_epochs", "1"], ["warm-up of its own"]),
        ({}, ["--optim.momentum", "0.9"], ["optim.momentum, optim.name", "only sgd"]),
        ({}, ["--scale.cpus_per_worker", "4000"], ["scale.cpus_per_worker", "2 workers of 4000 cores need 8000"]),
        (
            {"data.tiles": "no/such/store", "data.class_names": "no/such/names.yaml", "model.weights": "imagenet1k_v1"},
            ["--scale.gpu", "true", "--data.external", '{"x": "no/such/other"}'],
            ["no/such/store", "no/such/names.yaml", "fetch-weights imagenet1k_v1", "scale.gpu", "no/such/other"],
        ),
        ({"run.storage": "/proc/nowhere"}, [], ["run.storage", "/proc/nowhere"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_gets_one_clear_message(
    stores: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    flags: list[str],
    words: list[str],
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options)
    assert main(["train", str(config), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert all(word in said for word in words), said
    assert not list((tmp_path / "runs").rglob("*.json")), "nothing was begun"
