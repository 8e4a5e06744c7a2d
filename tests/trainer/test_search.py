"""Searches over a real, private Ray: what they try, choose and look at; stopped, killed, refused, extended."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from scipy import stats

from tests.conftest import REPOSITORY, write_config
from trainer.__main__ import main
from trainer.checkpoint import listed
from trainer.config import load_config
from trainer.plan import make_plan, write_run
from trainer.predict import read_predictions
from trainer.ranks import Ranks
from trainer.rundir import Json, RunDir, SearchDir, read_json, read_json_lines
from trainer.scale import this_machine
from trainer.tiles.pack import pack
from trainer.tiles.synthetic import write_source
from trainer.worker import work

BASE: dict[str, object] = {
    "run.name": "search",
    "search.searcher": "random",
    "search.scheduler": "none",
    "search.share_trunk": False,
    "search.final_seeds": 0,
    "search.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    "loop.keep": 2,
}


MARK, MARKED = "TISSUEGRID_TEST", uuid.uuid4().hex
"""In the environment of every process that a command here starts."""


class Command:
    """`python -m trainer tune` in a process group of its own."""

    def __init__(self, config: Path, *flags: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "tune", str(config), *flags],
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, MARK: MARKED},
        )

    def end(self, limit_s: float = 300) -> tuple[int, str]:
        """Its exit code and what it printed."""
        output, _ = self.process.communicate(timeout=limit_s)
        return self.process.returncode, output

    def kill(self) -> None:
        """SIGKILL to the driver alone: what it started is left to itself."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def make(stores: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration of a small search; options are given by dotted key."""

    def write(**options: object) -> Path:
        return write_config(tmp_path / "search.yaml", stores, tmp_path / "runs", {**BASE, **options})

    return write


def search_of(config: Path) -> SearchDir:
    run = yaml.safe_load(config.read_text())["run"]
    return SearchDir(Path(run["storage"]) / run["name"])


def trials_of(config: Path) -> list[Json]:
    return [read_json(run.trial_file) for run in search_of(config).trials()]


def wait_until(reached: Callable[[], bool], command: Command, limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        assert command.process.poll() is None, command.end()
        time.sleep(0.1)


def weights(run: RunDir) -> str:
    return hashlib.sha256((listed(run)[0].path / "trained.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No process that a command started stays behind."""
    yield
    deadline = time.monotonic() + 30
    while (left := started_here()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def started_here() -> list[str]:
    """The processes that commands of these tests have started, and those that these have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == MARKED and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline()[:3])}")
    return found


class Searched:
    """A grid search that has ended: three learning rates, of which one is too high, at depth 0, on one trunk."""

    def __init__(self, config: Path, output: str):
        self.config, self.output = config, output
        self.search = search_of(config)
        self.state = self.search.read()
        self.trials = {one["parameters"]["optim.lr"]: one for one in trials_of(config)}

    def run(self, lr: float) -> RunDir:
        return RunDir(self.search.trials_dir / self.trials[lr]["run"])


@pytest.fixture(scope="module")
def searched(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    options = {
        **BASE,
        "search.searcher": "grid",
        "search.share_trunk": "auto",
        "search.space": {"optim.lr": {"grid": [1e-2, 1e-5, 1e38]}, "model.unfrozen_depth": {"choice": [0]}},
        "search.final_seeds": 2,
        "data.split": "random",
        "data.test_fraction": 0.2,
    }
    config = write_config(folder / "search.yaml", stores, folder / "runs", options)
    code, output = Command(config).end()
    assert code == 0, output
    return Searched(config, output)


def test_a_grid_is_covered_exactly(searched: Searched) -> None:
    assert sorted(searched.trials) == [1e-5, 1e-2, 1e38]
    assert [run.name for run in searched.search.trials()] == ["0001", "0002", "0003"]
    assert "3 trials (grid, no early stopping) of model.unfrozen_depth 0, optim.lr 0.01, " in searched.output
    assert "checkpoints may take 2.2 MB (3 trials and 2 final runs)" in searched.output  # 18,441 x 12 bytes x 10


def test_trials_of_one_trunk_train_together(searched: Searched) -> None:
    assert "3 trials train heads alone: together on 1 trunk, each in one trial's place" in searched.output
    assert searched.state["scale"]["concurrent"] == 1
    attempts = [run.attempts() for run in searched.search.trials()]
    assert [len(each) for each in attempts] == [1, 1, 1]
    assert len({each[1]["pid"] for each in attempts}) == 1


def test_a_trial_that_diverges_is_recorded_and_ends_nothing(searched: Searched) -> None:
    diverged = searched.trials[1e38]
    assert diverged["status"] == "diverged"
    assert "diverged at step" in diverged["message"]
    assert (diverged["value"], diverged["failures"]) == (None, 0)
    assert searched.run(1e38).config_file.exists()
    assert {searched.trials[lr]["status"] for lr in (1e-2, 1e-5)} == {"done"}


def test_a_trial_has_no_data_to_be_tested_on(searched: Searched) -> None:
    for run in searched.search.trials():
        data = yaml.safe_load(run.config_file.read_text())["data"]
        assert data["external"] == {}
        assert data["evaluate_test"] is False
        assert not run.evaluations_file.exists()
        assert {file.name for file in run.predictions_dir.glob("*")} <= {"val.parquet"}


def test_the_choice_is_by_validation_and_tested_once_with_new_seeds(searched: Searched) -> None:
    choice = searched.state["choice"]
    assert choice["split"] == "val"
    assert (choice["of"], choice["candidates"]) == (3, 2)
    values = {one["run"]: one["value"] for one in searched.trials.values() if one["status"] == "done"}
    assert choice["best"] == max(values, key=lambda name: values[name])
    assert choice["value"] - choice["standard_error"] <= values[choice["cheapest"]]
    assert searched.state["state"] == "done"
    assert len(choice["finals"]) == 2
    finals = searched.search.finals()
    assert [run.name for run in finals] == sorted(choice["finals"])
    splits = set()
    for run in finals:
        assert [look["split"] for look in read_json_lines(run.evaluations_file)] == ["test", "elsewhere"]
        record = read_json(run.trial_file)
        assert record["parameters"] == searched.trials[1e-2 if choice["cheapest"] == "0001" else 1e-5]["parameters"]
        assert record["seed"] not in {one["seed"] for one in searched.trials.values()}
        splits.add(run.split_file.read_bytes())
    assert len({read_json(run.trial_file)["seed"] for run in finals}) == 2
    trained_on = {run.split_file.read_bytes() for run in searched.search.trials()}
    assert splits == trained_on, "what is tested on was set aside in every trial"


def test_what_is_said_at_the_end(searched: Searched) -> None:
    choice = searched.state["choice"]
    for words in (
        "tile-level split: tiles of one slide are on both sides",
        f"best: trial {choice['best']}, val/balanced_accuracy {choice['value']:.4f}",
        "of a tile-level split, chosen from 3 trials",
        f"is the choice: trial {choice['cheapest']}",
        "trained again with 2 new seeds: balanced_accuracy on test: ",
        "balanced_accuracy on elsewhere: ",
        "trial 0003 diverged",
        "python -m analysis table",
    ):
        assert words in searched.output


def test_records_say_where_and_how_long(searched: Searched) -> None:
    for one in searched.trials.values():
        assert one["workers"] == 1
        assert one["host"]
        assert one["started"] <= one["ended"]
        assert 0 < one["worker_seconds"] < one["seconds"], "they share a worker's time"
    done = searched.trials[1e-2]
    assert (done["epoch"], done["epochs"]) == (2, 2)
    assert done["value"] == max(line["val/balanced_accuracy"] for line in searched.run(1e-2).read_metrics())
    assert (
        len(read_predictions(searched.run(1e-2).predictions_file("val")).labels) == searched.state["data"]["val_tiles"]
    )


def test_a_trial_is_a_configuration_that_runs_alone(searched: Searched) -> None:
    """To the bit: one worker of one thread, in the search and here."""
    run = searched.run(1e-2)
    plan, data, base = make_plan(load_config(run.config_file, ["--run.name", "alone"]), this_machine())
    write_run(plan, data, base)
    assert plan.run.path == searched.search.path.parent / "alone"
    assert work(plan, Ranks(), lambda _: False).status == "done"
    assert weights(run) == weights(plan.run)
    logits = [read_predictions(one.predictions_file("val")).logits for one in (run, plan.run)]
    assert np.array_equal(*logits)


def test_a_finished_search_says_so(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in searched.search.path.rglob("trial.json")}
    assert main(["tune", str(searched.config)]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in searched.search.path.rglob("trial.json")}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--search.space", '{"optim.lr": {"grid": [0.01, 0.02]}}'],
            [
                "optim.lr: was {'grid': [0.01, 1e-05, 1e+38]}, is {'grid': [0.01, 0.02]}",
                "unfrozen_depth",
                "not searched",
            ],
        ),
        (["--optim.schedule", "onecycle"], ["optim.schedule: was constant, is onecycle"]),
        (["--run.seed", "3"], ["run.seed: was 7, is 3"]),
        (["--search.scheduler", "asha"], ["search.scheduler: was none, is asha"]),
    ],
    ids=["space", "base", "seed", "scheduler"],
)
def test_another_search_under_its_name_is_refused(
    searched: Searched, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    before = searched.search.search_file.read_bytes()
    assert main(["tune", str(searched.config), *flags]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in [*words, "is another search", "--fresh"]), said
    assert searched.search.search_file.read_bytes() == before


def test_a_run_and_a_search_do_not_share_a_name(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(searched.config), "--debug"]) == 2
    assert "is the name of a search" in capsys.readouterr().err
    assert main(["train", str(searched.config), "--debug", "--run.name", "alone2", "--loop.epochs", "1"]) == 0
    assert main(["tune", str(searched.config), "--run.name", "alone2"]) == 2
    assert "is the name of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale.workers": 64, "scale.cpus_per_worker": 1}, ["not one trial of 64 workers", "lower scale.workers"]),
        ({"data.tiles": "no/such/store", "scale.workers": 999}, ["no/such/store", "999 workers"]),
        (
            {"search.space": {"augment.eval_resize": {"choice": [48, 64]}}},
            ["trial 0001", "augment.eval_resize, augment.eval_crop: go together"],
        ),
    ],
    ids=["room", "data", "combination"],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: dict[str, object], words: list[str]
) -> None:
    config = make(**options)
    assert main(["tune", str(config)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not search_of(config).path.exists()


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("share", [False, "auto"], ids=["alone", "together"])
def test_stopped_it_goes_on_and_may_be_asked_for_more(make: Callable[..., Path], share: object) -> None:
    """TERM to the whole process group while trials train; then to the end; then two trials more."""
    config = make(**{"search.trials": 3, "search.share_trunk": share, "loop.epochs": 6, "loop.checkpoint_every": 2})
    command = Command(config)
    wait_until(lambda: any(one["epoch"] >= 2 for one in trials_of(config)), command)
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.end()
    assert code == 75, output
    assert "the same command goes on" in output
    stopped = trials_of(config)
    assert search_of(config).read()["state"] == "stopped"
    assert {one["status"] for one in stopped} <= {"waiting", "done"}
    begun = [run for run in search_of(config).trials() if (run.checkpoints_dir).exists()]
    assert begun
    assert all(listed(run) for run in begun), "every running trial has a checkpoint"
    reached = {run.name: listed(run)[0].step for run in begun}

    code, output = Command(config).end()
    assert code == 0, output
    for run in begun:
        if len(run.attempts()) > 1:
            assert run.attempts()[2]["resumed_step"] == reached[run.name]
    ended = trials_of(config)
    assert [one["status"] for one in ended] == ["done"] * 3

    code, output = Command(config, "--search.trials", "5").end()
    assert code == 0, output
    more = trials_of(config)
    assert more[:3] == ended, "no trial that had ended was touched"
    assert len(more) == 5
    assert len({one["parameters"]["optim.lr"] for one in more}) == 5
    assert search_of(config).read()["choice"]["of"] == 5


class Trained:
    """What a search's trials were, whoever stopped or killed it on the way."""

    def __init__(self, config: Path):
        self.records = trials_of(config)
        self.parameters = [one["parameters"] for one in self.records]
        self.values = [one["value"] for one in self.records]
        self.choice = search_of(config).read()["choice"]
        self.weights = {run.name: weights(run) for run in search_of(config).trials()}


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_killed_at_random_moments_no_ended_trial_is_run_again_and_the_same_one_wins(make: Callable[..., Path]) -> None:
    """SIGKILL of the driver, five times; against a search of the same seed that nobody disturbed, to the bit."""
    options = {"search.trials": 4, "loop.epochs": 3, "loop.checkpoint_every": 2, "scale.cpus_per_worker": 1}
    quiet = make(**options, **{"run.name": "undisturbed"})
    code, output = Command(quiet).end()
    assert code == 0, output
    undisturbed = Trained(quiet)

    config = make(**options, **{"run.name": "disturbed"})
    seed = random.randrange(10**6)
    print(f"moments are drawn from {seed}")
    moments = random.Random(seed)
    ended: dict[str, Json] = {}
    for _ in range(5):
        command = Command(config)
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(timeout=moments.uniform(20, 60))
        command.kill()
        for one in trials_of(config):
            assert ended.get(one["run"], one) == one, "a trial that had ended was touched"
            if one["status"] == "done":
                ended[one["run"]] = one
    code, output = Command(config).end()
    assert code == 0, output
    disturbed = Trained(config)
    for name, one in ended.items():
        assert disturbed.records[int(name) - 1] == one
    assert disturbed.parameters == undisturbed.parameters
    assert disturbed.values == undisturbed.values
    assert disturbed.weights == undisturbed.weights
    assert disturbed.choice == undisturbed.choice


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("share", [False, "auto"], ids=["alone", "together"])
def test_a_trial_that_is_killed_goes_on_and_one_that_always_breaks_fails(
    make: Callable[..., Path], share: object
) -> None:
    """SIGKILL of a trial's process: started again from its checkpoint. A trial that cannot be read breaks for good."""
    options = {"search.trials": 2, "loop.epochs": 6, "search.retries": 1, "scale.cpus_per_worker": 2}
    config = make(**options, **{"search.share_trunk": share})
    search = search_of(config)
    broken = search.trial(2)
    broken.checkpoints_dir.parent.mkdir(parents=True)
    (broken.path / "attempts").write_text("not a folder")
    command = Command(config)
    first = search.trial(1)
    wait_until(lambda: first.trial_file.exists() and read_json(first.trial_file)["epoch"] >= 2, command)
    os.kill(first.attempts()[1]["pid"], signal.SIGKILL)
    code, output = command.end()
    assert code == 0, output
    one, two = trials_of(config)
    assert (one["status"], one["failures"], one["epoch"]) == ("done", 1, 6)
    assert "was started again" in one["notes"][0]
    assert first.attempts()[2]["resumed_step"] > 0
    assert (two["status"], two["failures"]) == ("failed", 1)
    assert "attempts" in two["message"]
    assert "trial 0002 failed" in output

    (broken.path / "attempts").unlink()
    code, output = Command(config, "--retry-failed").end()
    assert code == 0, output
    assert [record["status"] for record in trials_of(config)] == ["done", "done"]
    assert trials_of(config)[0] == one


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_bad_trials_are_stopped_early_and_their_place_is_free(make: Callable[..., Path], scheduler: str) -> None:
    """Learning rates that do nothing, beside ones that learn: the first are stopped, after their epochs of grace."""
    options = {
        "search.trials": 8,
        "search.scheduler": scheduler,
        "search.searcher": "grid",
        "search.space": {"optim.lr": {"grid": [3e-3, 2e-3, 1e-3, 1e-2, 1e-7, 2e-7, 3e-7, 4e-7]}},
        "search.reduction": 2,
        "search.grace_epochs": 2,
        "loop.epochs": 8,
        "loop.best_metric": "val/loss",
    }
    config = make(**options)
    most = 0
    command = Command(config)
    while command.process.poll() is None:
        most = max(most, sum(one["status"] == "running" for one in trials_of(config)))
        time.sleep(0.2)
    code, output = command.end()
    assert code == 0, output
    by_rate = {one["parameters"]["optim.lr"]: one for one in trials_of(config)}
    stopped = [rate for rate, one in by_rate.items() if one["status"] == "stopped"]
    assert {1e-7, 2e-7, 3e-7, 4e-7} <= set(stopped)
    for one in by_rate.values():
        assert one["status"] in ("done", "stopped")
        if one["status"] == "stopped":
            assert 2 <= one["epoch"] < 8
            assert f"after epoch {one['epoch']}" in one["message"]
            assert listed(RunDir(search_of(config).trials_dir / one["run"]))
    assert most <= read_json(search_of(config).search_file)["scale"]["concurrent"]
    assert by_rate[3e-3]["status"] == "done"
    choice = search_of(config).read()["choice"]
    assert choice["candidates"] == 8 - len(stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_several_workers_a_trial_train_what_one_does_and_never_wait_for_each_other(make: Callable[..., Path]) -> None:
    """Four trials of two workers want more cores than there are; frozen BatchNorm, so results agree to rounding."""
    options = {
        "search.trials": 4,
        "model.norm": "frozen",
        "loop.micro_batch": 6,
        "scale.cpus_per_worker": 1,
        "loop.epochs": 2,
    }
    values = {}
    for workers in (1, 2):
        config = make(**options, **{"scale.workers": workers, "run.name": f"with-{workers}"})
        code, output = Command(config).end(600)
        assert code == 0, output
        trials = trials_of(config)
        assert [one["status"] for one in trials] == ["done"] * 4
        assert all(one["workers"] == workers for one in trials)
        assert all(one["worker_seconds"] == pytest.approx(workers * one["seconds"], abs=0.02) for one in trials)
        runs = search_of(config).trials()
        assert {line["world_size"] for run in runs for line in run.read_metrics()} == {workers}
        values[workers] = [run.read_metrics()[-1]["val/loss"] for run in runs]
    assert values[2] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_trials_of_two_workers_stop_early_and_on_request(make: Callable[..., Path]) -> None:
    config = make(
        **{
            "search.trials": 4,
            "search.scheduler": "asha",
            "search.searcher": "grid",
            "search.space": {"optim.lr": {"grid": [3e-3, 1e-2, 1e-7, 2e-7]}},
            "search.reduction": 2,
            "loop.epochs": 6,
            "loop.best_metric": "val/loss",
            "scale.workers": 2,
            "scale.cpus_per_worker": 1,
        }
    )
    command = Command(config)
    wait_until(lambda: any(one["epoch"] >= 1 for one in trials_of(config)), command)
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.end()
    assert code == 75, output
    code, output = Command(config).end(600)
    assert code == 0, output
    statuses = [one["status"] for one in trials_of(config)]
    assert statuses[0] == "done"
    assert "stopped" in statuses[2:]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_labels_that_mean_nothing_are_found_out(tmp_path: Path) -> None:
    """Shuffled labels: the best of several trials looks better than chance on validation; on unseen tiles it is not."""
    stores = []
    for name, tiles, slides in (("train", 162, 6), ("external", 270, 3)):
        manifest = write_source(tmp_path / name, tiles=tiles, size=32, seed=3, slides=slides)
        table = pd.read_csv(manifest)
        table["label"] = table["label"].sample(frac=1, random_state=1).to_numpy()
        table.to_csv(manifest, index=False)
        stores.append(tmp_path / "stores" / name)
        pack(manifest, stores[-1], processes=1)
    options = {**BASE, "search.trials": 6, "search.final_seeds": 1, "data.split": "random", "loop.epochs": 3}
    config = write_config(tmp_path / "search.yaml", (stores[0], stores[1]), tmp_path / "runs", options)
    code, output = Command(config).end(600)
    assert code == 0, output
    (final,) = search_of(config).finals()
    predicted = read_predictions(final.predictions_file("elsewhere"))
    right = int((predicted.logits.argmax(axis=1) == predicted.labels).sum())
    assert stats.binomtest(right, len(predicted.labels), 1 / 9).pvalue > 1e-3
    choice = search_of(config).read()["choice"]
    assert choice["value"] > 1 / 9


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_the_winner_beats_the_worst_by_a_margin(tmp_path: Path) -> None:
    """On drawn tissues: of four learning rates, one that does nothing and one that learns."""
    train = write_source(tmp_path / "source", tiles=324, size=32, seed=3, slides=6)
    external = write_source(tmp_path / "external-source", tiles=54, size=32, seed=3, slides=2, external=True)
    for manifest, name in ((train, "train"), (external, "external")):
        pack(manifest, tmp_path / name, processes=1)
    options = {
        **BASE,
        "search.searcher": "grid",
        "search.space": {"optim.lr": {"grid": [1e-3, 1e-7]}, "model.unfrozen_depth": {"choice": [5]}},
        "loop.epochs": 4,
        "augment.crop_scale": [1.0, 1.0],
    }
    config = write_config(
        tmp_path / "search.yaml", (tmp_path / "train", tmp_path / "external"), tmp_path / "r", options
    )
    code, output = Command(config).end(600)
    assert code == 0, output
    good, bad = (one["value"] for one in trials_of(config))
    choice = search_of(config).read()["choice"]
    assert (choice["best"], choice["cheapest"]) == ("0001", "0001")
    assert good - 3 * choice["standard_error"] > bad
