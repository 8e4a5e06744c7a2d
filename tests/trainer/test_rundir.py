import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.durable import create_exclusive, write_atomic
from trainer.errors import RunError
from trainer.rundir import RunDir, append_json_line, read_json


def test_storage_is_the_same_for_runs_and_trials(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "trials" / "run").storage == tmp_path / "trials"
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.json").touch()
    assert RunDir(tmp_path / "search" / "trials" / "3").storage == tmp_path


def test_of_many_claims_at_once_each_attempt_goes_to_one(tmp_path: Path) -> None:
    ready = threading.Barrier(6)

    def claim(who: int, number: int) -> bool:
        ready.wait()
        return RunDir(tmp_path).claim_attempt(number, {"resumed_step": 0, "who": who})

    with ThreadPoolExecutor(6) as pool:
        for number in range(1, 21):
            won = list(pool.map(claim, range(6), [number] * 6))
            assert sum(won) == 1
            assert RunDir(tmp_path).attempts()[number]["who"] == won.index(True)
    assert RunDir(tmp_path).newest_attempt() == 20


def test_exclusive_creation_leaves_the_first_content(tmp_path: Path) -> None:
    assert create_exclusive(tmp_path / "a", b"1")
    assert not create_exclusive(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_atomic_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"2")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "run.json") == {"a": 1}


def test_a_line_that_a_crash_has_cut_short_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    append_json_line(run.evaluations_file, {"split": "test"})
    with run.evaluations_file.open("a") as file:
        file.write('{"split": "te')
    assert [line["split"] for line in run.read_evaluations()] == ["test"]
    append_json_line(run.evaluations_file, {"split": "external"})
    assert [line["split"] for line in run.read_evaluations()] == ["test", "external"]
    run.evaluations_file.write_text('{"split": "te\n{"split": "test"}\n')
    with pytest.raises(RunError, match=r"evaluations\.jsonl: is damaged"):
        run.read_evaluations()
