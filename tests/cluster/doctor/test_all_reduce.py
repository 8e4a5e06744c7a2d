"""The all-reduce over all ranks."""

from __future__ import annotations

from cluster.allocation import local
from cluster.doctor import all_reduce, here
from cluster.doctor.limited import Ended
from tests.cluster.doctor.findings import assert_finding

GROUP = all_reduce.Group(world=4, meeting="127.0.0.1:1", backend="gloo", limit_s=60)


def test_the_bandwidth_of_a_ring() -> None:
    """Of n ranks in a ring each sends 2 (n-1) times a n-th: here 6 times 4 MB in 0.1 s."""
    good = all_reduce.judge(GROUP, all_reduce.Outcome(0.1, ""), "eth0")
    assert_finding(good, "pass", "4 ranks by gloo: 240 MB/s")
    assert_finding(all_reduce.judge(GROUP, all_reduce.Outcome(10.0, ""), "eth0"), "warn", "2.4 MB/s", "slow")
    assert_finding(all_reduce.judge(GROUP, all_reduce.Outcome(0.0, "refused"), "ib0"), "fail", "refused", "IFNAME=ib0")


def test_how_a_rank_ends() -> None:
    assert all_reduce.outcome(Ended(0, 'note\n{"seconds": 0.5}\n'), GROUP) == all_reduce.Outcome(0.5, "")
    assert all_reduce.outcome(Ended(1, "Traceback\nError: no route\n"), GROUP).problem == "Error: no route"
    assert all_reduce.outcome(Ended(None, ""), GROUP).problem == "not done in 180 s"


def test_a_rank_whose_others_never_come_is_a_fail() -> None:
    allocation = local("job", 0, 2)
    (finding,) = here.reduce(allocation, all_reduce.Group(2, "127.0.0.1:1", "gloo", 2.0), 1, 1)
    assert_finding(finding, "fail", "2 ranks by gloo", "IFNAME=lo")
