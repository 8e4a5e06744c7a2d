import json
import multiprocessing
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.rundir import RunDir, create_exclusive, read_json, write_atomic


def test_storage_is_the_same_for_runs_and_trials(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "run").storage == tmp_path
    assert RunDir(tmp_path / "search" / "trials" / "3").storage == tmp_path


def try_to_claim(path: Path, ready: multiprocessing.Barrier) -> int | None:
    ready.wait()
    return RunDir(path).claim_attempt({"resumed_step": 0})


def claim(path: Path, ready: multiprocessing.Barrier, answers: multiprocessing.Queue) -> None:
    answers.put(try_to_claim(path, ready))


def test_of_many_claims_at_once_each_attempt_goes_to_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, answers = context.Barrier(6), context.Queue()
    racing = [context.Process(target=claim, args=(tmp_path, ready, answers)) for _ in range(6)]
    for process in racing:
        process.start()
    got = [answers.get(timeout=60) for _ in racing]
    for process in racing:
        process.join()
    won = [number for number in got if number is not None]
    assert len(won) == len(set(won)) >= 1
    assert sorted(RunDir(tmp_path).attempts()) == sorted(won)


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
