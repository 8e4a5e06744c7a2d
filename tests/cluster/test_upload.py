"""What a job's working directory would upload: exactly what Ray takes, and never a secret or somebody else's files."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from cluster.upload import UploadError, inspect
from tests.conftest import REPOSITORY

MIB = 1024**2


@pytest.fixture(autouse=True)
def _authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray remembers from its first import whether there is authentication; others of this process need it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def taken_by_ray(root: Path, archive: Path) -> dict[str, int]:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    create_package(str(root), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with ZipFile(archive) as package:
        return {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}


def test_it_is_what_ray_takes(tmp_path: Path) -> None:
    root = tmp_path / "with space"
    write(
        root,
        {
            ".gitignore": "*.log\n/runs/\nbuild\n",
            ".rayignore": "/docs/\n!keep.log\n",
            "a": "1",
            "keep.log": "22",
            "lost.log": "333",
            "runs/x": "x",
            "package/runs/y": "y",
            "package/build/z": "z",
            "package/.gitignore": "*.tmp\n!b.tmp\n",
            "package/a.tmp": "t",
            "package/b.tmp": "tt",
            "docs/d": "d",
            ".git/config": "g",
            ".venv/bin": "v",
            ".env.example": "TOKEN=",
        },
    )
    (root / "empty").mkdir()
    (root / "linked").symlink_to(root / "package")
    (root / "nowhere").symlink_to(root / "no such file")
    upload = inspect(root)
    assert {str(path): size for path, size in upload.files.items()} == taken_by_ray(root, tmp_path / "package.zip")
    assert {"a", "package/runs/y", "linked/b.tmp"} <= {str(path) for path in upload.files}
    assert not {"runs/x", "docs/d", "lost.log"} & {str(path) for path in upload.files}


def test_this_project_uploads_what_trains_and_little_else(tmp_path: Path) -> None:
    upload = inspect(REPOSITORY)
    assert {str(path): size for path, size in upload.files.items()} == taken_by_ray(
        REPOSITORY, tmp_path / "package.zip"
    )
    assert {path.parts[0] for path in upload.files if len(path.parts) > 1} == {
        *("trainer", "cluster", "analysis", "configs")
    }
    assert max(upload.files.values()) < MIB / 32, "code, and nothing that only looks like it"
    assert upload.size < 2 * MIB  # the packages themselves take one


def test_secrets_and_links_that_leave_are_refused_all_at_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, {".env": "PASSWORD=1", "keys/id_rsa": "k", "a.pem": "k", "ignored.key": "k", ".rayignore": "*.key\n"})
    write(tmp_path / "outside", {"file": "theirs"})
    (root / "out").symlink_to("../outside")
    (root / "file").symlink_to(tmp_path / "outside" / "file")
    (root / "innocent").symlink_to(root / ".env")
    (root / "keys" / "loop").symlink_to(root)
    with pytest.raises(UploadError) as refused:
        inspect(root)
    said = str(refused.value).splitlines()
    named = {line.split(":")[0].strip() for line in said[1:-1]}
    assert named == {".env", "keys/id_rsa", "a.pem", "out", "file", "innocent", "keys/loop"}
    assert ".rayignore" in said[-1]


def test_what_is_ignored_may_be_secret(tmp_path: Path) -> None:
    write(tmp_path, {".env": "PASSWORD=1", ".gitignore": ".env\n", "a": "a"})
    assert {str(path) for path in inspect(tmp_path).files} == {".gitignore", "a"}


def test_too_much_is_refused_with_the_largest_named(tmp_path: Path) -> None:
    write(tmp_path, {"small/a": "a", "tiles/a": "a", "b": "b"})
    with (tmp_path / "tiles" / "a").open("wb") as file:
        file.truncate(90 * MIB)
    assert inspect(tmp_path).size == 90 * MIB + 2
    with (tmp_path / "b").open("wb") as file:
        file.truncate(10 * MIB)
    with pytest.raises(UploadError, match=r"100\.0 MiB") as refused:
        inspect(tmp_path)
    lines = str(refused.value).splitlines()
    assert [line.split()[-1] for line in lines[1:-1]] == ["tiles", "b", "small"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="no such folder"):
        inspect(tmp_path / "nowhere")
