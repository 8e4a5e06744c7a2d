from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import UsageError
from trainer.tiles.nonorm import are_twins, as_twin, is_unnormalised, names_of, refuse_twin


@pytest.mark.parametrize(
    "name",
    ["NCT-CRC-HE-100K-NONORM", "nct_nonorm", "nct-no-norm-224", "No_Norm", "unnormalised", "nct-not-normalized"],
)
def test_names_that_say_so(name: str) -> None:
    assert is_unnormalised((name,))


@pytest.mark.parametrize(
    "name", ["NCT-CRC-HE-100K", "NORM", "casino-norm", "no-normal-mucosa", "normalised", "nonormal"]
)
def test_names_that_do_not(name: str) -> None:
    assert not is_unnormalised((name,))


@pytest.mark.parametrize(
    ("one", "other", "twins"),
    [
        (("NCT-CRC-HE-100K",), ("NCT-CRC-HE-100K-NONORM",), True),
        (("nct-crc-he-100k",), ("nct_crc_he_100k_nonorm",), True),
        (("train", "NCT-CRC-HE-100K"), ("nonorm", "NCT-CRC-HE-100K-NONORM"), True),
        (("nct-224",), ("nct-nonorm-224",), True),
        (("nct-crc-he-100k",), ("crc-val-he-7k",), False),
        (("crc-val-he-7k",), ("nct-crc-he-100k-nonorm",), False),
        (("nct-crc-he-100k",), ("nonorm",), False),
        (("nct-nonorm",), ("nct-nonorm",), False),
    ],
)
def test_twins_are_equal_but_for_the_mark(one: tuple[str, ...], other: tuple[str, ...], twins: bool) -> None:
    assert are_twins(one, other) is twins
    assert are_twins(other, one) is twins


def test_the_refusal_names_both_and_a_remedy() -> None:
    with pytest.raises(UsageError, match=r"b/nct-NONORM is a/nct with other colours, .*CRC-VAL-HE-7K"):
        refuse_twin(Path("a/nct"), Path("b/nct-NONORM"))
    refuse_twin(Path("a/nct"), Path("b/other"))


def test_a_zip_and_a_key_are_names_too() -> None:
    assert as_twin(Path("nct"), Path("downloads/NCT-NONORM.zip"))
    assert as_twin(Path("nct"), Path("folder"), "nct-nonorm")
    assert as_twin(Path("nct"), Path("folder"), "elsewhere") is None


def test_a_store_that_is_gone_still_has_a_name(tmp_path: Path) -> None:
    assert names_of(tmp_path / "nct-nonorm", "key") == ("key", "nct-nonorm")
