"""What a search varies: for each option, by dotted key, the values that it may take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from trainer.config_errors import Explain

if TYPE_CHECKING:
    import numpy as np

INTERVALS = ("uniform", "loguniform", "randint", "quniform", "qloguniform", "qrandint")
SETS = ("choice", "grid")
NO_WHOLE_NUMBER = 0.381966
"""Where in an interval a value is tried that is whole only by chance: options of whole numbers refuse it."""
Parameters = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; with a `step`, only low, low + step, ... up to `high`."""

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def __str__(self) -> str:
        """In words."""
        ends = f"{self.low:g} to {self.high:g}"
        steps = f" in steps of {self.step:g}" if self.step is not None and self.step != 1 else ""
        return ends + steps + (" (by order of magnitude)" if self.log else "")

    def sample(self, generator: np.random.Generator) -> float | int:
        """A number, each as likely as any other; with `log`, each order of magnitude."""
        if self.log:
            return self.nearest(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        if self.step is not None:
            return self.nearest(self.low + self.step * int(generator.integers(self.steps + 1)))
        return float(generator.uniform(self.low, self.high))

    @property
    def steps(self) -> int:
        """How many steps fit between the ends."""
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def nearest(self, value: float) -> float | int:
        """The number of the interval that is nearest to `value`."""
        if self.step is not None:
            value = self.low + self.step * min(self.steps, max(0, round((value - self.low) / self.step)))
        value = min(self.high, max(self.low, value))
        return round(value) if self.whole else float(f"{value:.12g}")  # 0.1 + 2 * 0.1 is 0.3

    def extremes(self) -> list[float | int]:
        """Values by which an option shows whether it takes all of them."""
        ends = [self.nearest(self.low), self.nearest(self.high)]
        return ends if self.whole else [*ends, self.nearest(self.low + NO_WHOLE_NUMBER * (self.high - self.low))]


@dataclass(frozen=True)
class Options:
    """Given values. All of them are tried by a grid search, which `every` asks for."""

    values: tuple[Any, ...]
    every: bool

    def __str__(self) -> str:
        """In words."""
        *others, last = map(str, self.values)
        return f"{', '.join(others)} or {last}" if others else last

    def sample(self, generator: np.random.Generator) -> Any:
        """One of them, each as likely as any other."""
        return self.values[int(generator.integers(len(self.values)))]

    def extremes(self) -> list[Any]:
        """Values by which an option shows whether it takes all of them."""
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """The values of each option that is searched, in the order of their keys."""

    options: Mapping[str, Interval | Options]

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Space:
        """What a configuration's `search.space` says, which has been checked."""
        return cls({key: _read(written[key]) for key in sorted(written)})

    def __str__(self) -> str:
        """In words."""
        return ", ".join(f"{key} {values}" for key, values in self.options.items())

    def sample(self, generator: np.random.Generator) -> Parameters:
        """A value for each option, independently."""
        return {key: values.sample(generator) for key, values in self.options.items()}

    def combinations(self) -> Iterator[Parameters]:
        """Every combination of given values; the last option changes fastest."""
        values = [option.values if isinstance(option, Options) else () for option in self.options.values()]
        for chosen in product(*values):
            yield dict(zip(self.options, chosen, strict=True))


@dataclass(frozen=True)
class Searchable:
    """Checks a space against the options that there are."""

    explain: Explain
    default: Mapping[str, Any]
    keys: Set[str]

    def problems(self, search: object) -> list[str]:
        """One line for each thing that is wrong with the space of a `search` section, as it was given."""
        if not isinstance(search, Mapping):
            return []
        space = search.get("space", self.default)
        if not isinstance(space, Mapping):
            return []  # its type refuses it
        if not space:
            return ["search.space: is empty; name at least one option, e.g. {optim.lr: {loguniform: [1e-5, 1e-2]}}"]
        searcher = search.get("searcher", "optuna")
        return [problem for key in space for problem in self._of_option(str(key), space[key], searcher)]

    def _of_option(self, key: str, written: object, searcher: object) -> list[str]:
        where = f"search.space: {key}"
        if key not in self.keys:
            return [f"{where}: {self._not_searchable(key)}"]
        if form := _form_problem(written):
            return [f"{where}: {form}"]
        assert isinstance(written, Mapping)
        values = _read(written)
        if searcher == "grid" and isinstance(values, Interval):
            return [f"{where}: a grid needs given values: {{grid: [...]}}, or another search.searcher"]
        if searcher != "grid" and isinstance(values, Options) and values.every:
            return [f"{where}: grid needs search.searcher: grid; elsewhere write {{choice: [...]}}"]
        wrong = [(value, self.explain.value_problem(key, value)) for value in values.extremes()]
        return [f"{where}: {why} (given: {value!r})" for value, why in wrong if why][:1]

    def _not_searchable(self, key: str) -> str:
        section, _, option = key.partition(".")
        if option in self.explain.sections.get(section, ()):
            sections = ", ".join(sorted({name.partition(".")[0] for name in self.keys}))
            return f"is the same for all trials, or they could not be compared; search options of {sections}"
        if key in self.explain.sections:
            return f"is a section; name one of its options: {', '.join(self.explain.sections[key])}"
        return self.explain.no_such_option(key)


def _form_problem(written: object) -> str | None:
    """What is wrong with how the values of one option are written down."""
    kinds = (*INTERVALS, *SETS)
    if not isinstance(written, Mapping) or len(written) != 1:
        return f"should be {{kind: [...]}} with one of {', '.join(kinds)}"
    ((kind, values),) = written.items()
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.8)
        return f"{kind}: is no kind of values" + (f"; did you mean {near[0]}?" if near else f": {', '.join(kinds)}")
    if kind in SETS:
        return _set_problem(str(kind), values)
    return _interval_problem(str(kind), values)


def _set_problem(kind: str, values: object) -> str | None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        return f"{kind}: should be a list of values (given: {values!r})"
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    return f"{kind}: {twice[0]!r} is there twice" if twice else None


def _interval_problem(kind: str, values: object) -> str | None:
    form = "[low, high, step]" if kind.startswith("q") else "[low, high]"
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(numbers) != form.count(",") + 1 or not all(_is_number(number) for number in numbers):
        return f"{kind}: should be {form}, all numbers (given: {values!r})"
    low, high, *step = numbers
    if not low < high:
        return f"{kind}: low must be less than high (given: {values!r})"
    if "log" in kind and low <= 0:
        return f"{kind}: low must be above 0 (given: {low!r})"
    if step and not 0 < step[0] <= high - low:
        return f"{kind}: step must be above 0 and at most high - low (given: {step[0]!r})"
    if "int" in kind and not all(float(number).is_integer() for number in numbers):
        return f"{kind}: takes whole numbers (given: {values!r})"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(written: Mapping[str, Any]) -> Interval | Options:
    ((kind, values),) = written.items()
    if kind in SETS:
        return Options(tuple(values), every=kind == "grid")
    low, high, *given = values
    whole = "int" in kind
    step = given[0] if given else 1 if whole else None
    return Interval(float(low), float(high), step, log="log" in kind, whole=whole)
