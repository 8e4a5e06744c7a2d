"""From image files to the page, through the commands alone; and what the README and the repository promise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from tests.conftest import REPOSITORY, write_config
from trainer.__main__ import main as trainer
from trainer.tiles.synthetic import write_source


def test_files_in_page_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "source", tiles=99, size=32, seed=0, slides=5)
    other = write_source(tmp_path / "other", tiles=18, size=32, seed=0, slides=2, external=True)
    stores = (tmp_path / "store", tmp_path / "other-store")
    for manifest, store in zip((source, other), stores, strict=True):
        assert trainer(["prepare", str(manifest), str(store), "--mpp", "3.5"]) == 0
        assert trainer(["verify", str(store)]) == 0
    options: dict[str, object] = {"data.class_names": str(REPOSITORY / "configs/classes/nct.yaml")}
    config = write_config(tmp_path / "config.yaml", stores, tmp_path / "runs", options)
    assert trainer(["train", str(config), "--debug"]) == 0
    assert analysis(["report", str(tmp_path / "runs" / "small"), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    for words in ("small", "elsewhere", "group-level split", "肿瘤组织", "data:image/", "Research use only"):
        assert words in page
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["train"], ["verify"], ["report", "x"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    program = analysis if arguments[:1] == ["report"] else trainer
    with pytest.raises(SystemExit) as exit_:
        program(arguments)
    assert exit_.value.code == 2


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        trainer(["train", "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert "--optim.lr float" in said
    assert "(default: 0.0001)" in said
    assert "--dry-run" in said


def test_nothing_names_a_place_to_download_from() -> None:
    """The lock files hold hashes and no addresses, so that any mirror serves."""
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (REPOSITORY / lock).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_make_knows_its_targets() -> None:
    environment = {**os.environ, "MAKEFLAGS": ""}
    for target in (".venv", "demo", "test", "lint"):
        command = ["make", "--dry-run", "--always-make", target]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
