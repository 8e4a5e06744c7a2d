"""What a check may take: time, and programs that it starts."""

from __future__ import annotations

import threading
from pathlib import Path

from cluster.doctor.finding import passed
from cluster.doctor.limited import Check, look, program
from tests.cluster.doctor.findings import assert_finding


def test_a_check_that_hangs_is_a_fail_and_holds_up_nobody() -> None:
    for_ever = threading.Event()
    hanging = Check("storage", 0.1, "ask the site", lambda: [passed("storage", str(for_ever.wait()))])
    raising = Check("port", 5, "look there", lambda: [passed("port", Path("/nowhere/x").read_text())])
    well = Check("token", 5, "", lambda: [passed("token", "none")])
    hung, raised, fine = look([hanging, raising, well])
    for_ever.set()
    assert_finding(hung, "fail", "no answer in", "ask the site")
    assert_finding(raised, "fail", "/nowhere/x: No such file or directory", "look there")
    assert_finding(fine, "pass", "none")


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
