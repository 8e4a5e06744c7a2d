"""YAML files of people's: each key once, and plain values as YAML 1.2 reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UsageError

PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "merge": r"<<",
}
"""Each kind of plain value in the core schema of YAML 1.2 (and `<<`)."""

MERGE = "tag:yaml.org,2002:merge"
MOST_VALUES = 100_000


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises:
        UsageError: where it cannot be read, is not YAML, or gives a key twice, of which only the last would count.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        if _size(content, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values once its aliases are written out")
        return content
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); name a YAML file that is there") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # strange tags and nests
        raise UsageError(f"{file}: is not valid YAML: {error}") from None


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are in one, with those that aliases stand for: in a line each, they multiply."""
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        known[id(value)] = 1 + sum(_size(each, known) for each in inside)
    return known[id(value)]


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, to which 2:8 is 128 (to the base of 60), NO is false and 1e-4 is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own name, filled below

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == MERGE and not isinstance(value, yaml.MappingNode):  # lists of them multiply
                raise yaml.YAMLError(f"<< in line {key.start_mark.line + 1} takes one mapping")
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"{name} is given twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        return node


for _kind, _pattern in PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), None
    )  # at any character
