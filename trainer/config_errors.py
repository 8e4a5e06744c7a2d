"""What is wrong with a configuration, in the words of those who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

SECRET = "secret"
"""The kind of a mistake in a value that must not be repeated."""
LIMITS = "should be [smallest, largest]"
WORDS = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "dict_type": "should be {name: value, ...}",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "model_type": "should hold options, each as `name: value`",
    "path_type": "should be a path",
    "string_type": "should be text",
    "too_long": LIMITS,
    "tuple_type": LIMITS,
}
"""What is said where pydantic's own words are a programmer's."""


def between(options: str, problem: str) -> PydanticCustomError:
    """What is wrong between options, which are named: those of one section, or of several by their dotted keys."""
    return PydanticCustomError("between", "{problem}", {"problem": problem, "options": options.split()})


@dataclass(frozen=True)
class Explain:
    """Explains mistakes by what there is: the fields of each section."""

    sections: Mapping[str, Mapping[str, FieldInfo]]

    def problems(self, error: ValidationError, file: str, flags: Mapping[str, Any]) -> list[str]:
        """One line for each mistake, with the place that it came from: a flag (by dotted key) or the file."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for item in error.errors(include_url=False):
            place = [str(part) for part in item["loc"]]
            options = item.get("ctx", {}).get("options", place[1:2])
            keys = [".".join([*place[:1], option]) for option in options] or place
            on_command_line = any(key in flags for key in keys)
            reason, given = self._reason(item, keys[0])
            form = self.as_flag(keys[0]) if on_command_line else ""
            where = f"{'command line' if on_command_line else file}: {', '.join(keys)}"
            reasons.setdefault((where, given + form), []).append(reason)
        return [f"{where}: {_any_of(why)}{after}" for (where, after), why in reasons.items()]

    def stray(self, word: str) -> str:
        """What is wrong with a word of the command line that no parser knew."""
        if not word.startswith("-"):
            return f"{word}: belongs to no flag; write --section.option VALUE, and quotes around a value with spaces"
        key = word.lstrip("-").partition("=")[0]
        option = ".".join(key.split(".")[:2])
        if option != key and (form := self.as_flag(option)):
            return f"{key}: {option} is given whole{form}"
        return f"{key}: {self.no_such_option(key)}"

    def as_flag(self, key: str) -> str:
        """How to give an option of several values on the command line, as its help says; nothing for other options."""
        section, _, option = key.partition(".")
        field = self.sections.get(section, {}).get(option)
        meaning = (field.description or "") if field else ""
        _, found, form = meaning.partition("As a flag: ")
        return f"; as a flag: {form}" if found else ""

    def value_problem(self, key: str, value: object) -> str | None:
        """Why an option, by dotted key, does not take a value; None where it does."""
        section, option = key.split(".")
        field = self.sections[section][option]
        try:
            kind: Any = Annotated[field.annotation, field]
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            return _any_of([self._reason(item, key)[0] for item in error.errors(include_url=False)])
        return None

    def no_such_option(self, key: str) -> str:
        """Suggests the option of this name in another section, else what is near in its own, else what is very near."""
        section, _, option = key.rpartition(".")
        known = [f"{name}.{option}" for name, options in self.sections.items() for option in options]
        own = difflib.get_close_matches(option, self.sections.get(section, ()), n=1, cutoff=0.5)
        near = (
            [name for name in known if name.endswith(f".{option}")]
            or [f"{section}.{name}" for name in own]
            or difflib.get_close_matches(key, [*known, *self.sections], n=1, cutoff=0.75)
        )
        return "there is no such option" + (f"; did you mean {near[0]}?" if near else "")

    def _reason(self, item: ErrorDetails, key: str) -> tuple[str, str]:
        """What is wrong, and what was given where that helps."""
        if item["type"] == "extra_forbidden":
            return self.no_such_option(key), ""
        hidden = isinstance(item["input"], Mapping) or item["type"] == SECRET
        given = "" if hidden else f" (given: {item['input']!r})"
        if item["type"] == "missing":
            return (LIMITS, given) if len(item["loc"]) > 2 else (f"is missing; give it in the file or as --{key}", "")
        return WORDS.get(item["type"], item["msg"].removeprefix("Value error, ").removeprefix("Input ")), given


def _any_of(reasons: Sequence[str]) -> str:
    first, *others = dict.fromkeys(reasons)
    return " or ".join([first, *(reason.removeprefix("should be ") for reason in others)])
