"""Files of a search, and of its trials, that come to harm while nobody looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.damage import KINDS, restored
from tests.faults.ledger import Fault
from tests.object_store import contents
from tests.trainer.search.searches import search_of
from trainer.__main__ import main

pytestmark = pytest.mark.slow
NEEDED, NOT_NEEDED = "stops, is whole once restored", "not needed any more"
FILES = {
    "search.json": NEEDED,
    "trials/BEST/trial.json": NEEDED,
    "trials/BEST/metrics.jsonl": NEEDED,
    "trials/BEST/predictions/val.parquet": NEEDED,
    "trials/BEST/run.json": NOT_NEEDED,
    "trials/BEST/best.json": NOT_NEEDED,
    "trials/BEST/attempts/0001.json": NOT_NEEDED,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.fault(
    11, "a search's file", "nothing is searched again; where the file is needed, it is named with the remedy"
)
def test_a_damaged_file_of_a_search_is_not_needed_or_named(
    fault: Fault, searched: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    fault.injected = f"{name} of a search that has ended: truncated, emptied, deleted"
    file = search_of(searched).path / name.replace("BEST", search_of(searched).read()["choice"]["best"])
    came = []
    for damage in KINDS:
        with restored(file):
            damage(file)
            came.append(start_on_damage(searched, file, capfd))
        assert main(["tune", str(searched)]) == 0
        assert "nothing to do" in capfd.readouterr().out
        fault.times += 1
    assert came == [FILES[name]] * len(KINDS)
    fault.figure = FILES[name]


def start_on_damage(config: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> str:
    before = others(config)
    capfd.readouterr()
    code = main(["tune", str(config)])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert others(config) == before, "nothing was touched"
    if code == 0:
        assert "nothing to do" in said.out
        return NOT_NEEDED
    assert code == 1
    assert str(file) in said.err
    assert "restore it" in said.err
    return NEEDED


def others(config: Path) -> dict[str, bytes]:
    """All files of a search but the one in which each start says that it was there."""
    return {name: data for name, data in contents(search_of(config).path).items() if name != "search.json"}
