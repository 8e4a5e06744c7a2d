"""What the doctor tries in the storage, and what the system says of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cluster.doctor import storage
from tests.cluster.doctor.findings import assert_finding
from tests.cluster.doctor.mounts import tmpfs

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_storage_that_works(tmp_path: Path) -> None:
    assert_finding(storage.operations(tmp_path, "1-0"), "pass", str(tmp_path), "rename", "exclusive create", "fsync")
    assert_finding(storage.space(tmp_path), storage.space(tmp_path).level, "room for")
    assert not list(tmp_path.iterdir())


@root
def test_storage_that_is_read_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "ro") as folder:
        assert_finding(storage.operations(folder, "1-0"), "fail", "Read-only file system", "--storage")


@root
def test_storage_that_is_full(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "size=64k") as folder:
        with pytest.raises(OSError, match="No space"):
            (folder / "rest").write_bytes(bytes(100_000))
        assert_finding(storage.operations(folder, "1-0"), "fail", "No space left on device", "free space")
        assert_finding(storage.space(folder), "fail", "room for 0 B")
        assert [file.name for file in folder.iterdir()] == ["rest"]


@root
def test_storage_without_room_for_files(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "size=30g,nr_inodes=5000") as folder:
        assert_finding(storage.space(folder), "warn", "32.2 GB", "files")
    with tmpfs(tmp_path / "less", "size=30g,nr_inodes=50") as folder:
        assert_finding(storage.space(folder), "fail", "files")


def test_storage_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert_finding(storage.operations(tmp_path, "1-0"), "fail", "not permitted", "hard links")
    monkeypatch.setattr(os, "link", lambda *_: None)
    assert_finding(storage.operations(tmp_path, "1-0"), "fail", "exclusive create replaces")


def test_storage_that_other_nodes_see(tmp_path: Path) -> None:
    mark = tmp_path / ".mark"
    assert_finding(storage.visible(mark, "a", 0.1), "fail", "not seen here")
    assert_finding(storage.visible(tmp_path / "none" / "mark", "a", 0.1), "fail", "not seen here")
    mark.write_text("of another job")
    assert_finding(storage.visible(mark, "a", 0.1), "fail", "not seen here")
    later = threading.Timer(0.3, mark.write_text, ["a"])
    later.start()
    assert_finding(storage.visible(mark, "a", 30), "pass", "seen after")
    later.join()
    assert list(tmp_path.iterdir()) == [mark]


def test_a_folder_may_be_yet_to_be_made_but_not_the_one_above_it(tmp_path: Path) -> None:
    assert storage.to_examine(tmp_path) == storage.to_examine(tmp_path / "runs") == tmp_path
    lost = storage.to_examine(tmp_path / "no" / "such" / "runs")
    assert_finding(storage.operations(lost, "x"), "fail", f"{tmp_path}/no/such is not there", "--storage")


LUSTRE = """\
     /scratch/a/long/name
                 950000*       0 1000000       -     120       0       0       -
"""
NFS = """\
Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home        300     250     500  604800      10    1000    2000       0
"""


def test_quota() -> None:
    blocks, files = storage.parse_quota(LUSTRE)
    assert blocks == storage.Quota("/scratch/a/long/name", "kB", 950_000, 1_000_000)
    assert files.limit == 0
    assert_finding(storage.judge_quota(blocks), "warn", "950,000 of 1,000,000 kB used")
    over, well = storage.parse_quota(NFS)
    assert_finding(storage.judge_quota(over), "fail", "server:/home: 300 of 250 kB")
    assert_finding(storage.judge_quota(well), "pass", "10 of 1,000 files")
    assert storage.parse_quota("quota: error while getting quota from server\n") == []


def test_quota_asks_the_commands_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name, text in (("lfs", LUSTRE), ("quota", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        (tmp_path / name).chmod(0o755)
    (finding,) = storage.quota(tmp_path, 10)
    assert_finding(finding, "warn", "/scratch/a/long/name")
    (tmp_path / "lfs").write_text("#!/bin/sh\nsleep 1000\n")
    assert storage.quota(tmp_path, 1) == []
