import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from analysis.search import _now, read_search
from tests.analysis.made_runs import CLASSES, write_predictions
from tests.analysis.made_searches import change, choose, index, write_final, write_search, write_trial
from tests.conftest import REPOSITORY
from trainer.errors import RunError, UsageError
from trainer.rundir import SearchDir

GIVEN = {"optim.lr": 1e-3, "model.unfrozen_depth": 1}


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    """A search with a trial in every state."""
    made = write_search(tmp_path / "runs" / "made")
    write_trial(made, 1, GIVEN, values=(0.5, 0.7, 0.6))
    write_trial(made, 2, GIVEN, values=(0.95,), status="stopped")
    write_trial(made, 3, GIVEN, values=(), status="diverged", message="loss is nan", notes=["tried twice"])
    write_trial(made, 4, GIVEN, values=(), status="failed", message="no room")
    write_trial(made, 5, GIVEN, values=(0.4, 0.3), status="running")
    write_trial(made, 6, GIVEN, values=(), status="waiting")
    write_trial(made, 10, GIVEN, values=(0.5, 0.6, 0.8), right=0.8)
    return made


def test_a_search_is_read_while_it_runs(search: SearchDir) -> None:
    read = read_search(search.path)
    assert read.is_alive
    assert [trial.name for trial in read.trials] == ["0001", "0002", "0003", "0004", "0005", "0006", "0010"]
    statuses = ["done", "stopped", "diverged", "failed", "running", "waiting", "done"]
    assert [trial.status for trial in read.trials] == statuses
    assert read.trials[2].said == ("loss is nan", "tried twice")
    assert [trial.value for trial in read.trials] == [0.7, 0.95, None, None, 0.4, None, 0.8]
    assert read.trials[0].best["epoch"] == 2
    assert read.trials[4].balanced_accuracy == 0.4
    assert read.choice is None
    assert read.problems == ()


def test_done_trials_are_ranked_first_since_only_they_can_be_chosen(search: SearchDir) -> None:
    names = [trial.name for trial in read_search(search.path).ranked()]
    assert names == ["0010", "0001", "0002", "0005", "0003", "0004", "0006"]
    change(search, metric="val/loss", mode="min")
    for trial in ("0001", "0010"):
        file = search.trials_dir / trial / "trial.json"
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "value": 2.1 - state["value"]}))
    assert [trial.name for trial in read_search(search.path).ranked()][:2] == ["0010", "0001"]


def test_of_equal_trials_the_chosen_best_is_the_first(search: SearchDir) -> None:
    write_trial(search, 11, GIVEN, values=(0.8,))
    choose(search, 11, [11, 10], 10)
    assert [trial.name for trial in read_search(search.path).ranked()][:2] == ["0011", "0010"]


def test_the_balanced_accuracy_of_done_trials_is_that_of_their_predictions(search: SearchDir) -> None:
    trial = read_search(search.path).trial("0010")
    stored = pq.read_table(trial.directory.predictions_file("val")).to_pandas()
    predicted = [CLASSES[max(range(3), key=row.__getitem__)] for row in stored["logits"]]
    assert trial.validation is not None
    assert trial.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(stored["label"], predicted))
    assert trial.validation.low < trial.validation.value < trial.validation.high


def test_slides_count_where_the_split_is_by_slide(search: SearchDir) -> None:
    by_group = read_search(search.path).trial("0010").validation
    change(search, data={**search.read()["data"], "split": "random"})
    by_tile = read_search(search.path).trial("0010").validation
    assert by_group is not None
    assert by_tile is not None
    assert by_group.value == by_tile.value
    assert by_group.high - by_group.low > by_tile.high - by_tile.low  # six slides are few


def test_new_predictions_are_seen_by_the_next_look(search: SearchDir) -> None:
    before = read_search(search.path).trial("0010").balanced_accuracy
    write_trial(search, 10, GIVEN, values=(0.5, 0.6, 0.8), right=0.4)
    assert read_search(search.path).trial("0010").balanced_accuracy != before


@pytest.mark.parametrize("lock", ["old", "none"])
def test_without_a_heartbeat_nobody_is_searching_and_nothing_runs(search: SearchDir, lock: str) -> None:
    if lock == "none":
        search.lock_file.unlink()
    else:
        os.utime(search.lock_file, (time.time() - 60, time.time() - 60))
    read = read_search(search.path)
    assert not read.is_alive
    assert read.trial("0005").status == "waiting"


@pytest.mark.parametrize("ahead_s", [-60.0, 60.0])
def test_a_clock_that_is_not_the_file_servers_does_not_count(
    search: SearchDir, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    monkeypatch.setattr("time.time", lambda: time.time_ns() / 1e9 + ahead_s)
    before = sorted(search.path.rglob("*"))
    assert read_search(search.path).is_alive
    os.utime(search.lock_file, ns=2 * (time.time_ns() - 30 * 10**9,))
    assert not read_search(search.path).is_alive
    assert sorted(search.path.rglob("*")) == before, "nothing is left there"


def test_where_nothing_can_be_written_this_clock_counts(tmp_path: Path) -> None:
    assert _now(tmp_path / "not-there") == pytest.approx(time.time(), abs=5)


def test_a_trial_that_is_not_there_yet_or_damaged_does_not_hide_the_others(search: SearchDir) -> None:
    (search.trials_dir / "0007").mkdir()
    search.trial(2).trial_file.write_text("{")
    search.trial(3).trial_file.write_text("{}")
    search.trial(5).metrics_file.write_text('{"epoch": 1,')
    search.trial(10).predictions_file("val").write_bytes(b"PAR1")
    read = read_search(search.path)
    assert len(read.trials) == 7
    assert [read.trial(name).status for name in ("0001", "0002", "0003", "0005")] == [
        "done",
        "failed",
        "failed",
        "running",
    ]
    assert read.trial("0010").validation is None
    files = [search.trial(2).trial_file, search.trial(3).trial_file, search.trial(5).metrics_file]
    for file in (*files, search.trial(10).predictions_file("val")):
        assert len([problem for problem in read.problems if str(file) in problem]) == 1


def test_an_epoch_that_the_search_has_not_heard_of_counts(search: SearchDir) -> None:
    write_trial(search, 2, GIVEN, values=(0.4, 0.6), status="running", epoch=0, value=None)
    trial = read_search(search.path).trial("0002")
    assert (trial.epoch, trial.value, trial.balanced_accuracy) == (2, 0.6, 0.6)


def test_epochs_without_a_finite_score_are_never_the_best(search: SearchDir) -> None:
    lines = search.trial(1).metrics_file.read_text().replace("0.7", "NaN")
    search.trial(1).metrics_file.write_text(lines)
    assert read_search(search.path).trial("0001").best["epoch"] == 3


def test_the_finals_are_those_of_the_present_choice(search: SearchDir) -> None:
    write_final(search, 1, 1, GIVEN, {"val": 0.9, "elsewhere": 0.8})
    write_final(search, 10, 1, GIVEN, {"val": 0.9, "test": 0.85, "elsewhere": 0.8})
    write_final(search, 10, 2, GIVEN, {"val": 0.9})
    choose(search, 10, [10, 1], 10, finals=["0010-seed1", "0010-seed2"])
    read = read_search(search.path)
    assert [(final.name, final.seed, list(final.scores)) for final in read.finals] == [
        ("0010-seed1", 1, ["val", "test", "elsewhere"]),
        ("0010-seed2", 2, ["val"]),
    ]
    assert read.finals[0].looks == {"test": 1, "elsewhere": 1}
    assert read.final_runs() == []  # none of them has a run.json yet
    assert (read.kind_of("test"), read.kind_of("elsewhere")) == ("group-level split", "external set")


def test_a_set_whose_classes_nobody_knows_has_no_score(search: SearchDir) -> None:
    final = write_final(search, 10, 1, GIVEN, {"val": 0.9, "elsewhere": 0.8})
    unknown = index().assign(label=None)
    write_predictions(final.predictions_file("elsewhere"), unknown, np.zeros((60, 3)), CLASSES)
    choose(search, 10, [10, 1], 10, finals=["0010-seed1"])
    [read] = read_search(search.path).finals
    assert list(read.scores) == ["val"]


def test_a_choice_of_a_trial_that_is_gone_is_none(search: SearchDir) -> None:
    choose(search, 99, [99, 10], 10)
    assert read_search(search.path).choice is None


def test_wrong_paths_are_refused_with_the_remedy(search: SearchDir, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: there is no such directory; name the directory of a search"):
        read_search(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"search.json: is a file; name the directory of a search"):
        read_search(search.search_file)
    with pytest.raises(UsageError, match=rf"it holds searches: name one of {search.path}"):
        read_search(search.path.parent)
    (search.trial(1).identity_file).write_text("{}")
    with pytest.raises(UsageError, match=r"is the directory of a run, not of a search.*analysis report"):
        read_search(search.trial(1).path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", RunError, "is damaged"),
        ("{}", UsageError, "lacks search, state, space"),
        ({"data": {"split": "sideways", "external": {}}}, UsageError, "data.split is 'sideways'"),
    ],
)
def test_a_damaged_search_is_refused_by_name(
    search: SearchDir, content: str | dict[str, object], error: type[Exception], message: str
) -> None:
    if isinstance(content, str):
        search.search_file.write_text(content)
    else:
        change(search, **content)
    with pytest.raises(error, match=f"{re.escape(str(search.search_file))}.*{message}"):
        read_search(search.path)


def test_a_look_loads_nothing_slow(search: SearchDir) -> None:
    code = (
        "import sys; from analysis.__main__ import main; code = main(['table', sys.argv[1]]); "
        "slow = {'torch', 'ray', 'pandas', 'scipy', 'matplotlib', 'pyarrow.dataset', 'optuna'} & set(sys.modules); "
        "sys.exit(f'{code} {slow}' if slow or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(search.path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
