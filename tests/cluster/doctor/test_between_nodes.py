"""What is told by nodes to each other, and what is seen by comparing them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.allocation import hostnames, local
from cluster.doctor import compare, examine, here, programs
from cluster.doctor.exchange import ClockBounds, Exchange, SilenceError
from cluster.doctor.finding import passed
from cluster.rendezvous import Rendezvous
from tests.cluster.doctor.findings import assert_finding, left_in

VERSIONS = {"Python": "3.11.7", "torch": "2.15.0", "ray": "2.60.0", "numpy": "2.4.6"}


def test_versions_that_differ_are_named() -> None:
    other = {**VERSIONS, "numpy": "1.26.4", "Python": "3.12.1"}
    first, second, third = compare.compare_versions({"n1": other, "n2": VERSIONS, "n3": VERSIONS})
    assert_finding(first, "fail", "Python 3.12.1, elsewhere 3.11.7; numpy 1.26.4, elsewhere 2.4.6")
    assert (first.node, second.level, third.level) == ("n1", "pass", "pass")
    tie = compare.compare_versions({"n1": VERSIONS, "n2": other})
    assert [one.level for one in tie] == ["pass", "fail"]
    (alone,) = compare.compare_versions({"n1": {**VERSIONS, "torch": "missing"}})
    assert_finding(alone, "fail", "not installed: torch", "make .venv")


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
    assert_finding(compare.judge_clock(bounds), "warn", "ahead by 2.98 s", "80 ms", "chrony")
    assert_finding(compare.judge_clock(ClockBounds(-5.0, -4.0)), "warn", "behind by 4.50 s")
    assert_finding(compare.judge_clock(ClockBounds(-0.1, 0.3)), "pass", "0.10 s (± 0.20 s)")
    assert_finding(compare.judge_clock(ClockBounds(-4.0, 6.0)), "warn", "± 5.00 s", "date")
    assert_finding(compare.judge_clock(ClockBounds(1.0, 0.0)), "warn", "jumps")


def test_nodes_that_do_not_come_or_do_not_answer_are_named() -> None:
    names = ["n1", "n2", "n3"]
    assert [one.level for one in compare.judge_presence(names, {0: "n1", 1: "n2", 2: "n3"}, [0, 1, 2])] == ["pass"] * 3
    absent, silent = compare.judge_presence(names, {0: "n1", 2: "n3"}, [0])
    assert (absent.node, silent.node) == ("n2", "n3")
    assert_finding(absent, "fail", "no word from it", "--shared")
    assert_finding(silent, "fail", "does not answer")


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
    assert_finding(fail, "fail", "file", "--shared")
    assert_finding(port, "pass")


def test_a_store_that_another_node_does_not_see(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    files = programs.listing(stores[0])
    assert_finding(programs.same_store(stores[0], files), "pass", "is seen")
    assert_finding(programs.same_store(tmp_path / "none", files), "fail", "not seen here")
    assert_finding(programs.same_store(stores[1], files), "fail", "another one")
