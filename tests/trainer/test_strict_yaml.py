from pathlib import Path

import pytest
import yaml

from trainer.errors import UsageError
from trainer.strict_yaml import read_yaml


def read(folder: Path, text: str) -> object:
    file = folder / "some.yaml"
    file.write_text(text)
    return read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:8", "2:8"),
        ("1:30:00", "1:30:00"),
        ("NO", "NO"),
        ("off", "off"),
        ("2024-01-31", "2024-01-31"),
        ("true", True),
        ("1e-4", 1e-4),
        ("-.5", -0.5),
        ("-12", -12),
        ("0", 0),
        ("", None),
        ("~", None),
        ('""', ""),
        ('"3"', "3"),
    ],
)
def test_plain_values_are_those_of_the_core_schema(tmp_path: Path, text: str, value: object) -> None:
    """The expected values are those of chapter 10.3.2 of the YAML 1.2.2 specification."""
    found = read(tmp_path, f"key: {text}")
    assert found == {"key": value}
    assert isinstance(found, dict)
    assert type(found["key"]) is type(value)
    assert read(tmp_path, yaml.safe_dump(found)) == found, "what is written down is read back"


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"some.yaml: .*lr is given twice, in lines 3 and 5"):
        read(tmp_path, "loop: {epochs: 1}\noptim:\n  lr: 1\n  name: adam\n  lr: 2\n")
    with pytest.raises(UsageError, match="loop is given twice, in lines 1 and 2"):
        read(tmp_path, "loop: {epochs: 1}\nloop: {keep: 2}\n")


def test_a_shared_mapping_may_be_overridden(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    "text", ["!!int x", "!!bool x", "!!timestamp x", "!!int ''", "!!python/name:os.system", "{[]: 1}"]
)
def test_strange_tags_and_keys_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not valid YAML"):
        read(tmp_path, text)


def test_merged_lists_of_mappings_are_refused(tmp_path: Path) -> None:
    """Nine of nine of nine would be written out while they are read."""
    with pytest.raises(UsageError, match="<< in line 2 takes one mapping"):
        read(tmp_path, "a: &a {x: 1}\nb: {<<: [*a, *a]}\n")
