"""Exported networks, read by other programs, against the run's best checkpoint; and what the README shows."""

from __future__ import annotations

import importlib.util
import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.conftest import REPOSITORY
from trainer import export_formats
from trainer.__main__ import main
from trainer.checkpoint import load_best_model
from trainer.export_formats import FORMATS, ONNX_PACKAGES, Card
from trainer.rundir import RunDir, read_json
from trainer.tiles.augment import MEAN, STD
from trainer.trained import open_trained

missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
with_onnx = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.mark.parametrize("form", ["safetensors", "torch.export", pytest.param("onnx", marks=with_onnx)])
def test_what_is_exported_computes_the_same_and_says_what_it_is(
    trained_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    file = tmp_path / f"exported{FORMATS[form].suffix}"
    assert main(["export", str(trained_run.path), "--format", form, "--out", str(file)]) == 0
    assert "read again, its logits differ" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file]
    run, card = FORMATS[form].read(file)
    images = torch.randn((5, 3, 32, 32), generator=torch.Generator().manual_seed(1))  # another number than was traced
    with torch.no_grad():
        assert torch.allclose(run(images), load_best_model(trained_run)(images), rtol=0, atol=1e-4)
    trained = open_trained(trained_run.path)
    assert card["classes"] == list(trained.classes)
    assert (card["mean"], card["std"]) == (list(MEAN), list(STD))
    assert (card["tile_size"], card["mpp"], card["input_size"]) == ([32, 32], None, 32)
    assert card["temperature"] == read_json(trained_run.best_file)["temperature"]
    assert (card["run"], card["checkpoint"]) == ("small", trained.checkpoint.path.name)
    assert card["data_fingerprint"] == trained.identity["data"]["tiles"]["fingerprint"]


def test_two_lines_of_torchvisions_user_load_it(
    trained_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the README, as they stand there; and a program that shows metadata finds the classes by name."""
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line and not line.startswith("import")]
    assert len(lines) == 2
    (name,) = re.findall(r'load_file\("(.*?)"\)', block)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained_run.path), "--format", "safetensors", "--out", name]) == 0
    scope: dict[str, torch.nn.Module] = {}
    exec(block, scope)
    images = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(scope["model"](images), load_best_model(trained_run)(images), atol=1e-4)
    with safe_open(name, "pt") as opened:
        assert json.loads(opened.metadata()["classes"]) == list(open_trained(trained_run.path).classes)


def test_what_computes_something_else_is_not_exported(
    trained_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and read for real, but with one weight changed between."""
    form = FORMATS["safetensors"]

    def write(model: torch.nn.Sequential, card: Card, side: int, file: Path) -> None:
        changed = deepcopy(model)
        changed.fc.bias[0] += 0.001
        form.write(changed, card, side, file)

    monkeypatch.setitem(export_formats.FORMATS, "safetensors", replace(form, write=write))
    file = tmp_path / "exported.safetensors"
    assert main(["export", str(trained_run.path), "--format", "safetensors", "--out", str(file)]) == 1
    assert "differ from the checkpoint's by 1.0e-03" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_input_gets_one_clear_message(
    trained_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    for run, form, file, words in (
        (trained_run.path, "safetensors", tmp_path / "model.bin", "is named *.safetensors"),
        (trained_run.path, "safetensors", there, "is there already"),
        (trained_run.path, "safetensors", trained_run.path / "model.safetensors", "lies in the run's directory"),
        (tmp_path, "torch.export", tmp_path / "model.pt2", "is not a run directory"),
    ):
        assert main(["export", str(run), "--format", form, "--out", str(file)]) == 2
        assert words in capsys.readouterr().err
    assert there.read_text() == "mine"
    monkeypatch.setattr(export_formats, "ONNX_PACKAGES", ("numpy", "no_such_package"))
    assert main(["export", str(trained_run.path), "--format", "onnx", "--out", str(tmp_path / "model.onnx")]) == 2
    assert "--format onnx needs no_such_package, not installed here: pip install" in capsys.readouterr().err
