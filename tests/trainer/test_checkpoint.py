import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import checkpoint as ck
from trainer.errors import RunError
from trainer.rundir import RunDir
from trainer.weights import load_base


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "a")
    run.checkpoints_dir.mkdir(parents=True)
    return run


def save(run: RunDir, step: int, attempt: int = 1) -> ck.Checkpoint:
    tensors = {"fc.weight": torch.full((64, 64), float(step)), "fc.bias": torch.zeros(64)}
    return ck.commit(run, step, attempt, tensors, {"position": {"step": step}}, {"epoch": step})


def claim(run: RunDir, resumed_step: int) -> int:
    attempt = run.newest_attempt() + 1
    assert run.claim_attempt(attempt, {"resumed_step": resumed_step})
    return attempt


def test_what_was_committed_is_read_back(run: RunDir) -> None:
    saved = save(run, 3)
    tensors, state = ck.read(saved)
    assert torch.equal(tensors["fc.weight"], torch.full((64, 64), 3.0))
    assert state == {"position": {"step": 3}}
    assert ck.newest_good(run) == (saved, [])
    assert [path.name for path in run.checkpoints_dir.iterdir()] == ["step-00000003-a0001"]


def test_a_model_is_the_average_of_the_weights_where_there_is_one(run: RunDir) -> None:
    base = load_base("random", seed=1)
    ck.store_base(run, base.sha256, base.data)
    facts, head = {"base_sha256": base.sha256}, {"fc.weight": torch.ones(3, 2048), "fc.bias": torch.zeros(3)}
    without = ck.commit(run, 1, 1, head, {}, facts)
    assert torch.equal(ck.load_model(run, without).fc.weight, torch.ones(3, 2048))
    average = {f"ema.{name}": tensor + 1 for name, tensor in head.items()}
    with_it = ck.commit(run, 2, 1, {**head, **average}, {}, facts)
    model = ck.load_model(run, with_it)
    assert torch.equal(model.fc.weight, torch.full((3, 2048), 2.0))
    assert torch.equal(model.fc.bias, torch.ones(3))


def flip_a_bit(folder: Path) -> None:
    file = folder / ck.TENSORS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "flipped bit": (flip_a_bit, "another content"),
    "truncated": (lambda f: (f / ck.TENSORS).write_bytes((f / ck.TENSORS).read_bytes()[:100]), "another size"),
    "no state": (lambda f: (f / ck.STATE).unlink(), "is missing"),
    "no manifest": (lambda f: (f / ck.MANIFEST).unlink(), "no manifest"),
    "empty manifest": (lambda f: (f / ck.MANIFEST).write_bytes(b""), "manifest is damaged"),
    "edited manifest": (
        lambda f: (f / ck.MANIFEST).write_text((f / ck.MANIFEST).read_text().replace('"epoch": 2', '"epoch": 3')),
        "manifest is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_is_quarantined_and_the_one_before_used(run: RunDir, kind: str) -> None:
    harm, why = DAMAGE[kind]
    first, second = save(run, 1), save(run, 2)
    harm(second.path)
    found, said = ck.newest_good(run)
    assert found == first
    assert len(said) == 1
    assert second.path.name in said[0]
    assert why in said[0]
    assert [path.name for path in run.quarantine_dir.iterdir()] == [second.path.name]


def test_a_history_without_a_good_checkpoint_never_starts_over(run: RunDir) -> None:
    assert ck.resume_point(run) == (None, [])
    flip_a_bit(save(run, 1).path)
    for _ in range(2):  # also once the damaged one has been moved away
        with pytest.raises(RunError, match="--fresh"):
            ck.resume_point(run)


def test_a_later_attempt_that_resumed_below_replaces(run: RunDir) -> None:
    claim(run, 0)
    for step in (1, 2, 3):
        save(run, step)
    claim(run, 2)
    late = save(run, 4, attempt=1)  # the first attempt was not dead after all
    assert [c.step for c in ck.listed(run)] == [2, 1]
    mine = save(run, 3, attempt=2)
    assert ck.listed(run)[0] == mine
    ck.prune(run, keep=3)
    assert not late.path.exists()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 6))
def test_the_fencing_rule(resumed_steps: list[int], step: int, attempt: int) -> None:
    resumed = dict(enumerate(resumed_steps, start=1))
    expected = not any(later > attempt and at < step for later, at in resumed.items())
    assert ck.counts(step, attempt, resumed) == expected


def test_prune_keeps_best_latest_and_older_ones(run: RunDir) -> None:
    history = []
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7), (5, 0.8)):
        save(run, step)
        history.append({"epoch": step, "step": step, "attempt": 1, "val/accuracy": value})
        ck.write_history(run, history, "val/accuracy")
        ck.prune(run, keep=3)
    assert sorted(c.step for c in ck.listed(run)) == [2, 4, 5]
    assert json.loads(run.best_file.read_text())["step"] == 2


def test_prune_removes_what_was_being_written_but_not_by_the_newest_attempt(run: RunDir) -> None:
    for attempt in (claim(run, 0), claim(run, 0)):
        (run.checkpoints_dir / f".step-00000003-a{attempt:04d}.tmp").mkdir(parents=True)
    ck.prune(run, keep=3)
    assert [path.name for path in run.checkpoints_dir.iterdir()] == [".step-00000003-a0002.tmp"]


def test_the_best_is_the_best_that_is_good(run: RunDir) -> None:
    history = []
    for step, value in ((1, 0.7), (2, 0.2), (3, 0.4)):
        save(run, step)
        history.append({"epoch": step, "step": step, "attempt": 1, "val/loss": value})
    assert ck.best_good(run, history, "val/loss").step == 2
    flip_a_bit(run.checkpoints_dir / "step-00000002-a0001")
    assert ck.best_good(run, history, "val/loss").step == 3
    assert json.loads(run.best_file.read_text())["step"] == 3


def test_base_weights_are_stored_once_and_checked(run: RunDir) -> None:
    import hashlib

    from safetensors.torch import save as to_bytes

    data = to_bytes({"conv1.weight": torch.ones(3)})
    sha256 = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        ck.store_base(run, sha256, data)
    assert torch.equal(ck.read_base(run, sha256)["conv1.weight"], torch.ones(3))
    assert run.weights_file(sha256) == run.path.parent / "weights" / f"{sha256}.safetensors"
    run.weights_file(sha256).write_bytes(data[:-1])
    with pytest.raises(RunError, match="damaged"):
        ck.read_base(run, sha256)
