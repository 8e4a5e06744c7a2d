"""Copies that are killed, overtaken, pruned away, taken over, or damaged in the mirror."""

from __future__ import annotations

import os
import queue
import signal
from pathlib import Path

import pytest
import torch

from tests.object_store import contents, local
from tests.processes import on_ranks
from tests.trainer.conftest import Look
from trainer import checkpoint as ck
from trainer import mirror
from trainer.copier import Copier
from trainer.mirror import Mirror
from trainer.ranks import Ranks
from trainer.rundir import RunDir


def small_run(folder: Path) -> tuple[RunDir, Path]:
    """A run directory as far as a mirror looks at it, of attempt 1, and its base weights."""
    run = RunDir(folder / "small")
    run.path.mkdir(parents=True)
    run.identity_file.write_text('{"run": "small"}')
    assert run.claim_attempt(1, {"resumed_step": 0})
    ck.store_base(run, "0" * 64, b"weights")
    return run, run.weights_file("0" * 64)


def commit(run: RunDir, step: int, attempt: int = 1, size: int = 4) -> ck.Checkpoint:
    return ck.commit(run, step, attempt, {"fc.weight": torch.rand(size)}, {"position": {"step": step}}, {})


def copy(uri: str, run: RunDir, base: Path, attempt: int = 1) -> list[str]:
    """Copies all there is now; returns what was said."""
    said: list[str] = []
    Copier(uri, run, attempt, base, said.append).finish()
    return said


def _copy_killed_in(_: Ranks, uri: str, run: RunDir, base: Path, file: Path) -> None:
    def stream(source: object, sink: object) -> None:
        data = source.read()  # type: ignore[attr-defined]
        if source.name == str(file):  # type: ignore[attr-defined]
            sink.write(data[: len(data) // 2])  # type: ignore[attr-defined]
            os.killpg(0, signal.SIGKILL)
        sink.write(data)  # type: ignore[attr-defined]

    mirror._stream = stream
    copy(uri, run, base)


@pytest.mark.parametrize(
    ("place", "name"), [("s3", "trained.safetensors"), ("file", "manifest.json")], indirect=["place"]
)
def test_killed_while_it_copies_half_a_checkpoint_does_not_count(
    tmp_path: Path, place: tuple[str, Look], name: str
) -> None:
    uri, look = place
    run, base = small_run(tmp_path / "runs")
    first = commit(run, 1)
    assert copy(uri, run, base) == []
    second = commit(run, 2, size=6_000_000)  # 24 MB: sent in several parts
    assert on_ranks(1, _copy_killed_in, uri, run, base, second.path / name) is None
    assert f"small/checkpoints/{second.path.name}/manifest.json" not in look()

    elsewhere = RunDir(tmp_path / "elsewhere" / "small")
    elsewhere.storage.mkdir()
    said = Mirror(uri, elsewhere).fetch()
    assert said[-1].endswith(first.path.name)
    assert [c.path.name for c in ck.listed(elsewhere)] == [first.path.name]
    assert ck.find_flaw(ck.listed(elsewhere)[0]) is None
    assert {file.name for file in elsewhere.storage.iterdir()} == {"small"}

    assert copy(uri, run, base) == []
    assert {key: data for key, data in look().items() if not key.endswith(".part")} == local(run)


def test_what_failed_is_tried_again_at_the_next_checkpoint(tmp_path: Path) -> None:
    run, base = small_run(tmp_path / "runs")
    folder = tmp_path / "mirror"
    folder.write_text("in the way")
    said: queue.Queue[str] = queue.Queue()
    copier = Copier(folder.as_uri(), run, 1, base, said.put)
    assert "cannot be brought up to date" in said.get(timeout=60)
    copier.wake()
    folder.unlink()
    commit(run, 1)
    copier.wake()
    assert "up to date again" in said.get(timeout=60)
    commit(run, 2)
    copier.finish()
    assert contents(folder) == local(run)
    assert said.empty()


def test_a_checkpoint_that_is_pruned_meanwhile_is_copied_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a mirror slower than the checkpoints come would never get one."""
    run, base = small_run(tmp_path / "runs")
    first = commit(run, 1)
    expected = contents(first.path)
    found: list[dict[str, bytes]] = []
    stream = mirror._stream

    def slow(source: object, sink: object) -> None:
        name = str(getattr(source, "name", ""))
        if first.path.exists() and str(first.path) in name:
            for step in (2, 3):
                commit(run, step)
            ck.prune(run, keep=2)
            assert not first.path.exists()
        if "step-00000003" in name:
            found.append(contents(tmp_path / "mirror" / "small" / "checkpoints" / first.path.name))
        stream(source, sink)

    monkeypatch.setattr(mirror, "_stream", slow)
    assert copy((tmp_path / "mirror").as_uri(), run, base) == []
    assert found[0] == expected
    assert contents(tmp_path / "mirror") == local(run), "and it is removed once a newer one is there"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_attempt_that_lost_its_run_writes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run, base = small_run(tmp_path / "runs")
    commit(run, 1)
    folder = tmp_path / "mirror"
    stream = mirror._stream

    def taken_over(source: object, sink: object) -> None:
        if "trained" in str(getattr(source, "name", "")):
            assert run.claim_attempt(2, {"resumed_step": 0})
        stream(source, sink)

    if when == "before":
        assert run.claim_attempt(2, {"resumed_step": 0})
    else:
        monkeypatch.setattr(mirror, "_stream", taken_over)
    (line,) = copy(folder.as_uri(), run, base)
    assert "attempt 2 has taken the run over" in line
    found = contents(folder)
    assert not [name for name in found if "manifest" in name or "metrics" in name]
    assert bool(found) == (when == "meanwhile")
