"""The doctor: each check on made inputs, and all of them on pretended nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cluster.allocation import hostnames, local, visible_gpus
from cluster.doctor import all_reduce, compare, examine, gpus, here, programs, storage, system
from cluster.doctor.exchange import ClockBounds, Exchange, SilenceError
from cluster.doctor.finding import Amount, Finding, failed, from_word, passed, warned
from cluster.doctor.limited import Check, Ended, look, program
from cluster.doctor.output import ORDER, Report, print_table, rows, to_json
from cluster.rendezvous import Rendezvous
from tests.conftest import REPOSITORY

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
UNLIMITED = float("inf")


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def the_one(finding: Finding, level: str, *parts: str) -> None:
    """It has this level, says these parts, and has a remedy exactly where it does not pass."""
    assert finding.level == level, finding.text
    assert bool(finding.remedy) == (level != "pass")
    for part in parts:
        assert part in finding.text + finding.remedy


# Limits


def test_a_check_that_hangs_is_a_fail_and_holds_up_nobody() -> None:
    for_ever = threading.Event()
    hanging = Check("storage", 0.1, "ask the site", lambda: [passed("storage", str(for_ever.wait()))])
    raising = Check("port", 5, "look there", lambda: [passed("port", Path("/nowhere/x").read_text())])
    well = Check("token", 5, "", lambda: [passed("token", "none")])
    hung, raised, fine = look([hanging, raising, well])
    for_ever.set()
    the_one(hung, "fail", "no answer in", "ask the site")
    the_one(raised, "fail", "/nowhere/x: No such file or directory", "look there")
    the_one(fine, "pass", "none")


def test_a_program_ends_at_its_limit_with_all_that_it_started() -> None:
    ended = program(["bash", "-c", "echo first; sleep 1000 & echo $!; wait"], 1.0)
    assert ended.code is None
    first, child = ended.text.split()
    assert first == "first"
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_programs_answer_is_found_among_what_else_it_prints() -> None:
    ended = program(["bash", "-c", "echo warning >&2; echo '{\"seconds\": 2}'; echo bye >&2; exit 3"], 10.0)
    assert (ended.code, ended.answer, ended.last_line) == (3, {"seconds": 2}, "bye")


# The node itself


def test_processes() -> None:
    the_one(system.processes(1024), "warn", "ulimit -u is 1,024", "ulimit -u 4096")
    the_one(system.processes(UNLIMITED), "pass", "unlimited")
    shell = subprocess.run(["bash", "-c", "ulimit -Su"], capture_output=True, text=True, check=True).stdout.strip()
    assert system.processes().text.replace(",", "") == f"ulimit -u is {shell}"


def test_locked_memory_matters_with_infiniband(tmp_path: Path) -> None:
    the_one(system.locked_memory(65536, tmp_path), "pass", "65.5 kB", "no InfiniBand")
    (tmp_path / "mlx5_0").mkdir()
    the_one(system.locked_memory(65536, tmp_path), "warn", "InfiniBand", "ulimit -l unlimited")
    the_one(system.locked_memory(UNLIMITED, tmp_path), "pass", "unlimited")


@root
def test_shared_memory(tmp_path: Path) -> None:
    for size, level in (("64m", "fail"), ("512m", "warn"), ("2g", "pass")):
        with tmpfs(tmp_path / size, f"size={size}") as folder:
            the_one(system.shared_memory(folder), level, str(folder))


def test_a_temporary_path_that_is_too_long_for_sockets() -> None:
    short = Path("/tmp/tg-1234567-0-0-n0001")
    the_one(system.temporary_path(short), "pass", "of 107 bytes")
    assert not list(Path("/tmp").glob(f"{short.name}*"))
    the_one(
        system.temporary_path(Path("/tmp/tg-1234567-0-0-gpu-a100-node-0001.cluster")), "fail", "of 107 bytes", "name"
    )
    (answer,) = look([Check("temporary path", 5, "look", lambda: [system.temporary_path(Path("/nowhere/tg-1"))])])
    the_one(answer, "fail", "No such file")


def test_a_port_of_an_address_that_is_not_here() -> None:
    the_one(system.port("127.0.0.1"), "pass")
    (answer,) = look([Check("port", 5, "look there", lambda: [system.port("192.0.2.1")])])  # RFC 5737: nobody's
    the_one(answer, "fail", "assign")


@pytest.mark.parametrize("own", [True, False])
def test_a_token_that_others_may_read(tmp_path: Path, own: bool) -> None:
    file = tmp_path / ".ray" / "auth_token" if own else tmp_path / "elsewhere"
    environment = {} if own else {"RAY_AUTH_TOKEN_PATH": str(file)}
    the_one(system.token(environment, tmp_path), "pass", "makes its own")
    file.parent.mkdir(exist_ok=True)
    file.write_text("secret")
    for mode, level in ((0o644, "fail"), (0o640, "fail"), (0o600, "pass")):
        file.chmod(mode)
        the_one(system.token(environment, tmp_path), level, f"{mode:04o}")
        assert "secret" not in str(system.token(environment, tmp_path))


# GPUs


def seen(*devices: str, driver: str | None = None, problems: tuple[str, ...] = ()) -> gpus.Seen:
    return gpus.Seen("2.15.0", "13.2", driver, devices, problems)


def test_gpus_that_were_granted_and_that_torch_does_not_see() -> None:
    granted = visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"})
    the_one(gpus.judge(granted, seen()), "fail", "2 granted, torch sees 0", "CUDA 13.2", "driver none", "nvidia-smi")
    the_one(gpus.judge(granted, seen("A100", driver="570.1")), "fail", "torch sees 1", "driver 570.1")
    the_one(gpus.judge(granted, seen("A100", "A100")), "pass", "2 A100")


def test_other_gpus() -> None:
    the_one(gpus.judge(1, seen("A100", "H200")), "warn", "1 granted, torch sees 2")
    the_one(gpus.judge(None, seen("A100", "H200")), "pass", "1 A100, 1 H200")
    the_one(gpus.judge(0, seen()), "pass", "none granted, none seen")
    the_one(gpus.judge(None, seen("A100", problems=("GPU 0: no kernel image",))), "fail", "no kernel image")


@pytest.mark.parametrize(
    ("value", "count"), [(None, None), ("", 0), ("NoDevFiles", 0), ("-1", 0), ("3", 1), ("GPU-1,GPU-2", 2)]
)
def test_visible_gpus(value: str | None, count: int | None) -> None:
    assert visible_gpus({} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == count


def test_the_drivers_version() -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12.2.0"
    assert gpus.driver_version(text) == "570.86.15"
    assert gpus.driver_version("no such thing") is None


def test_a_torch_that_does_not_import_says_why(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    answer = gpus.ask(60, {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    assert answer == "torch does not work: ImportError: libcudart.so.13: cannot open shared object file"


# All-reduce

GROUP = all_reduce.Group(world=4, meeting="127.0.0.1:1", backend="gloo", limit_s=60)


def test_the_bandwidth_of_a_ring() -> None:
    """Of n ranks in a ring each sends 2 (n-1) times a n-th: here 6 times 4 MB in 0.1 s."""
    good = all_reduce.judge(GROUP, all_reduce.Outcome(0.1, ""), "eth0")
    the_one(good, "pass", "4 ranks by gloo: 240 MB/s")
    the_one(all_reduce.judge(GROUP, all_reduce.Outcome(10.0, ""), "eth0"), "warn", "2.4 MB/s", "slow")
    the_one(all_reduce.judge(GROUP, all_reduce.Outcome(0.0, "refused"), "ib0"), "fail", "refused", "IFNAME=ib0")


def test_how_a_rank_ends() -> None:
    assert all_reduce.outcome(Ended(0, 'note\n{"seconds": 0.5}\n'), GROUP) == all_reduce.Outcome(0.5, "")
    assert all_reduce.outcome(Ended(1, "Traceback\nError: no route\n"), GROUP).problem == "Error: no route"
    assert all_reduce.outcome(Ended(None, ""), GROUP).problem == "not done in 180 s"


def test_a_rank_whose_others_never_come_is_a_fail() -> None:
    allocation = local("job", 0, 2)
    (finding,) = here.reduce(allocation, all_reduce.Group(2, "127.0.0.1:1", "gloo", 2.0), 1, 1)
    the_one(finding, "fail", "2 ranks by gloo", "IFNAME=lo")


# Storage


def test_storage_that_works(tmp_path: Path) -> None:
    the_one(storage.operations(tmp_path, "1-0"), "pass", str(tmp_path), "rename", "exclusive create", "fsync")
    the_one(storage.space(tmp_path), storage.space(tmp_path).level, "room for")
    assert not list(tmp_path.iterdir())


@root
def test_storage_that_is_read_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "ro") as folder:
        the_one(storage.operations(folder, "1-0"), "fail", "Read-only file system", "--storage")


@root
def test_storage_that_is_full(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "size=64k") as folder:
        with pytest.raises(OSError, match="No space"):
            (folder / "rest").write_bytes(bytes(100_000))
        the_one(storage.operations(folder, "1-0"), "fail", "No space left on device", "free space")
        the_one(storage.space(folder), "fail", "room for 0 B")
        assert [file.name for file in folder.iterdir()] == ["rest"]


@root
def test_storage_without_room_for_files(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "store", "size=30g,nr_inodes=5000") as folder:
        the_one(storage.space(folder), "warn", "32.2 GB", "files")
    with tmpfs(tmp_path / "less", "size=30g,nr_inodes=50") as folder:
        the_one(storage.space(folder), "fail", "files")


def test_storage_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    the_one(storage.operations(tmp_path, "1-0"), "fail", "not permitted", "hard links")
    monkeypatch.setattr(os, "link", lambda *_: None)
    the_one(storage.operations(tmp_path, "1-0"), "fail", "exclusive create replaces")


def test_storage_that_other_nodes_see(tmp_path: Path) -> None:
    mark = tmp_path / ".mark"
    the_one(storage.visible(mark, "a", 0.1), "fail", "not seen here")
    the_one(storage.visible(tmp_path / "none" / "mark", "a", 0.1), "fail", "not seen here")
    mark.write_text("of another job")
    the_one(storage.visible(mark, "a", 0.1), "fail", "not seen here")
    later = threading.Timer(0.3, mark.write_text, ["a"])
    later.start()
    the_one(storage.visible(mark, "a", 30), "pass", "seen after")
    later.join()
    assert list(tmp_path.iterdir()) == [mark]


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert storage.nearest(tmp_path / "a" / "b") == tmp_path
    assert storage.nearest(tmp_path) == tmp_path


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
    the_one(storage.judge_quota(blocks), "warn", "950,000 of 1,000,000 kB used")
    over, well = storage.parse_quota(NFS)
    the_one(storage.judge_quota(over), "fail", "server:/home: 300 of 250 kB")
    the_one(storage.judge_quota(well), "pass", "10 of 1,000 files")
    assert storage.parse_quota("quota: error while getting quota from server\n") == []


def test_quota_asks_the_commands_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name, text in (("lfs", LUSTRE), ("quota", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        (tmp_path / name).chmod(0o755)
    (finding,) = storage.quota(tmp_path, 10)
    the_one(finding, "warn", "/scratch/a/long/name")
    (tmp_path / "lfs").write_text("#!/bin/sh\nsleep 1000\n")
    assert storage.quota(tmp_path, 1) == []


# Between nodes

VERSIONS = {"Python": "3.11.7", "torch": "2.15.0", "ray": "2.60.0", "numpy": "2.4.6"}


def test_versions_that_differ_are_named() -> None:
    other = {**VERSIONS, "numpy": "1.26.4", "Python": "3.12.1"}
    first, second, third = compare.compare_versions({"n1": other, "n2": VERSIONS, "n3": VERSIONS})
    the_one(first, "fail", "Python 3.12.1, elsewhere 3.11.7; numpy 1.26.4, elsewhere 2.4.6")
    assert (first.node, second.level, third.level) == ("n1", "pass", "pass")
    tie = compare.compare_versions({"n1": VERSIONS, "n2": other})
    assert [one.level for one in tie] == ["pass", "fail"]
    (alone,) = compare.compare_versions({"n1": {**VERSIONS, "torch": "missing"}})
    the_one(alone, "fail", "not installed: torch", "make .venv")


def test_versions_are_those_that_would_be_imported() -> None:
    import numpy
    import ray

    found = compare.versions()
    assert (found["numpy"], found["ray"]) == (numpy.__version__, ray.__version__)
    assert "missing" not in found.values()


def test_clocks() -> None:
    """Theirs is 3 s ahead. It was read 0.2 s after we asked and 0.1 s before we heard; then 0.06 s and 0.3 s."""
    bounds = ClockBounds()
    bounds.narrow(10.0, 13.2, 10.3)
    bounds.narrow(20.0, 23.06, 20.36)
    assert (bounds.low, bounds.high) == pytest.approx((2.9, 3.06))
    the_one(compare.judge_clock(bounds), "warn", "ahead by 2.98 s", "80 ms", "chrony")
    the_one(compare.judge_clock(ClockBounds(-5.0, -4.0)), "warn", "behind by 4.50 s")
    the_one(compare.judge_clock(ClockBounds(-0.1, 0.3)), "pass", "0.10 s (± 0.20 s)")
    the_one(compare.judge_clock(ClockBounds(-4.0, 6.0)), "warn", "± 5.00 s", "date")
    the_one(compare.judge_clock(ClockBounds(1.0, 0.0)), "warn", "jumps")


def test_nodes_that_do_not_come_or_do_not_answer_are_named() -> None:
    names = ["n1", "n2", "n3"]
    assert [one.level for one in compare.judge_presence(names, {0: "n1", 1: "n2", 2: "n3"}, [0, 1, 2])] == ["pass"] * 3
    absent, silent = compare.judge_presence(names, {0: "n1", 2: "n3"}, [0])
    assert (absent.node, silent.node) == ("n2", "n3")
    the_one(absent, "fail", "no word from it", "--shared")
    the_one(silent, "fail", "does not answer")


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("", []),
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu[008-010,20],cpu1", ["gpu008", "gpu009", "gpu010", "gpu20", "cpu1"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_node_names(nodelist: str, names: list[str]) -> None:
    assert hostnames(nodelist) == names


def test_two_nodes_tell_each_other_and_compare_clocks(tmp_path: Path) -> None:
    first, second = (Exchange(local("job", rank, 2), Rendezvous(tmp_path / "job")) for rank in range(2))
    first.start()
    second.start()
    first.tell("task", {"what": 1})
    assert second.hear("task", 30) == {"what": 1}
    second.tell("checked", {"all": "well"})
    assert first.hear_all("checked", [1], 30) == {1: {"all": "well"}}
    assert first.hear_all("reduced", [1], 0.5) == {}
    leaving = threading.Thread(target=first.leave, args=([1],))
    leaving.start()
    second.stay()
    second.leave([])
    leaving.join()
    assert first.clocks[1].low <= 0 <= first.clocks[1].high  # they have the same clock
    assert not (tmp_path / "job").exists()


def test_a_first_node_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    second = Exchange(local("job", 1, 2), Rendezvous(tmp_path / "job"))
    second.start()
    with pytest.raises(SilenceError, match="the first node has said nothing"):
        second.hear("task", 0.3)
    second.leave([])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are not looked at, only who comes."""
    monkeypatch.setattr(examine, "examine", lambda *_: here.Answer([passed("port", "one")], VERSIONS, 0))
    monkeypatch.setattr(examine, "_trainer_checks", lambda _: [])


def left_in(tmp_path: Path) -> list[Path]:
    """All that is left but the folder of all meetings, which other jobs may be about to use."""
    return [path for path in tmp_path.rglob("*") if path != tmp_path / "shared"]


def request(tmp_path: Path, shared: Path) -> examine.Request:
    return examine.Request(shared, tmp_path, (), 0.3, ("local0", "local1"), 0)


@pytest.mark.usefixtures("quick")
def test_a_node_that_does_not_come_is_a_fail_with_its_name(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    exchange = Exchange(local("job", 0, 2), Rendezvous(shared / "job"))
    report = examine.lead(exchange, request(tmp_path, shared))
    exchange.leave([])
    assert report.exit_code == 1
    assert [(one.check, one.node) for one in report.findings if one.level == "fail"] == [
        ("nodes", "local1"),
        ("all-reduce", "local0"),
    ]
    assert not left_in(tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_meeting_place_that_cannot_be_made_is_a_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    exchange = Exchange(local("job", 0, 2), Rendezvous(tmp_path / "file" / "job"))
    report = examine.lead(exchange, request(tmp_path, tmp_path / "file"))
    fail, port = report.findings
    the_one(fail, "fail", "file", "--shared")
    the_one(port, "pass")


# Stores, as other nodes see them


def test_a_store_that_another_node_does_not_see(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    files = programs.listing(stores[0])
    the_one(programs.same_store(stores[0], files), "pass", "is seen")
    the_one(programs.same_store(tmp_path / "none", files), "fail", "not seen here")
    the_one(programs.same_store(stores[1], files), "fail", "another one")


# Output


def made_report() -> Report:
    one = warned("storage", "use a faster one", "/runs: fsync ", Amount(1.5, "s"))
    two = warned("storage", "use a faster one", "/runs: fsync ", Amount(2.5, "s"))
    findings = [
        *(Finding(**{**vars(it), "node": node}) for it, node in ((one, "n1"), (two, "n2"))),
        Finding(**{**vars(failed("versions", "one .venv", "numpy [1.26]")), "node": "n2"}),
        Finding(**{**vars(passed("versions", "Python 3.11")), "node": "n1"}),
        Finding(**{**vars(passed("processes", Amount(UNLIMITED))), "node": "n1"}),
    ]
    return Report(("n1", "n2"), tuple(findings))


def test_equal_findings_of_nodes_are_one_row_with_a_range() -> None:
    versions, python, slow, processes = rows(made_report())
    assert (versions.finding.level, versions.nodes, python.nodes) == ("fail", "n2", "n1")
    assert (slow.nodes, slow.text) == ("all 2", "/runs: fsync 1.50 s to 2.50 s")
    assert processes.text == "unlimited"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_all(width: int) -> None:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    print_table(made_report(), console)
    console.file.close()
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for part in ("numpy [1.26]", "-> one .venv", "-> use a faster one", "2 nodes: 2 pass, 1 warn, 1 fail."):
        assert part in text


def test_findings_survive_the_way_between_nodes() -> None:
    for finding in made_report().findings:
        assert from_word(json.loads(json.dumps(finding.word))) == finding


def test_json_is_strict() -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    answer = json.loads(to_json(made_report()), parse_constant=refuse)
    assert answer["ok"] is False
    assert answer["findings"][0]["amounts"] == [{"value": 1.5, "unit": "s"}]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Amount(0.0123, "s"), "12 ms"),
        (Amount(0.0999, "s"), "0.10 s"),
        (Amount(0.25, "s"), "0.25 s"),
        (Amount(0, "B"), "0 B"),
        (Amount(0.4, "B/s"), "0.4 B/s"),
        (Amount(999, "B"), "999 B"),
        (Amount(999_600, "B"), "1 MB"),
        (Amount(1_500_000, "B/s"), "1.5 MB/s"),
        (Amount(2e14, "B"), "200 TB"),
        (Amount(4096), "4,096"),
        (Amount(16_207_724), "16.2 million"),
    ],
)
def test_amounts(amount: Amount, text: str) -> None:
    assert str(amount) == text


# All of it


def doctor(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "COLUMNS": "120",
        **variables,
    }
    for name in [name for name in environment if name.startswith(("SLURM_", "RAY_"))]:
        del environment[name]
    places = ("--shared", str(folder / "shared"), "--storage", str(folder / "runs"))
    return subprocess.run(
        [sys.executable, "-m", "cluster", "doctor", *places, *flags],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_nodes_that_are_well(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    done = doctor(tmp_path, "--nodes", "local:2", "--store", str(stores[0]))
    assert (done.returncode, done.stderr) == (0, "")
    assert " fail " not in done.stdout.replace("0 fail", "")
    for part in (
        "2 ranks by gloo",
        "is as it was packed: 99 tiles",
        "fetch-weights imagenet1k_v2 --from FILE",
        "Ready.",
    ):
        assert part in " ".join(done.stdout.split())
    assert not left_in(tmp_path)


def test_two_nodes_with_a_damaged_store(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    store = shutil.copytree(stores[0], tmp_path / "store")
    with (store / "tiles.npy").open("r+b") as tiles:
        tiles.seek(-1, os.SEEK_END)
        last = tiles.read(1)[0]
        tiles.seek(-1, os.SEEK_END)
        tiles.write(bytes([last ^ 1]))
    done = doctor(tmp_path, "--nodes", "local:2", "--store", str(store), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["nodes"]) == (False, ["local0", "local1"])
    (damaged,) = [one for one in answer["findings"] if one["level"] == "fail"]
    assert (damaged["check"], damaged["node"]) == ("store", "local0")
    assert str(store) in damaged["found"]
    assert {one["check"] for one in answer["findings"]} == set(ORDER) - {"quota"}


def test_this_machine_with_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", CUDA_VISIBLE_DEVICES="77,78")
    assert done.returncode == 1
    (fail,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "fail"]
    assert fail["check"] == "GPUs"
    assert fail["found"].startswith("2 granted, torch sees 0 (torch ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    places = ("--shared", str(tmp_path / "shared"), "--storage", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "doctor", "--nodes", "local:2", *places],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(tmp_path.glob(".tissuegrid-doctor-mark-*")):
        assert process.poll() is None
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    assert process.wait(60) != 0
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not left_in(tmp_path)


def test_wrong_usage() -> None:
    for flags in (("--nodes", "remote:2"), ("--nodes", "local:0")):
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "doctor", *flags],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "give local:N" in done.stderr
