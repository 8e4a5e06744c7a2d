import math
from typing import Any

import pytest

from analysis.fields import Field, fields


def field(key: str, written: dict[str, Any]) -> Field:
    [made] = fields({key: written})
    return made


def test_names_are_the_shortest_that_mean_nothing_else() -> None:
    space = {key: {"uniform": [0, 1]} for key in ("optim.lr", "model.lr", "loop.epochs", "model.unfrozen_depth")}
    names = [each.name for each in fields(space, taken=["epochs", "rank"])]
    assert names == ["optim.lr", "model.lr", "loop.epochs", "unfrozen_depth"]


@pytest.mark.parametrize(
    ("written", "value", "text", "position"),
    [
        ({"loguniform": [1e-5, 1e-2]}, 0.00031, "3.1e-04", math.log10(0.00031)),
        ({"uniform": [0, 0.5]}, 0.12345, "0.123", 0.12345),
        ({"randint": [0, 5]}, 3, "3", 3),
        ({"qrandint": [0, 100, 10]}, 30, "30", 30),
        ({"choice": [3, 0, 1]}, 3, "3", 3),
        ({"grid": [1e-5, 1e-3]}, 1e-3, "1.0e-03", -3),
        ({"choice": [1e-4, 1.04e-4, 1e-2]}, 1.04e-4, "1.04e-04", math.log10(1.04e-4)),
        ({"choice": ["adam", "sgd"]}, "sgd", "sgd", 1),
        ({"choice": [True, False]}, False, "false", 1),
        ({"choice": [None, "auto", 3]}, None, "null", 0),
        ({"choice": [[0.9, 0.99], [0.9, 0.999]]}, [0.9, 0.999], "[0.9, 0.999]", 1),
    ],
)
def test_values_are_written_for_people_and_have_a_place(
    written: dict[str, Any], value: object, text: str, position: float
) -> None:
    made = field("optim.lr", written)
    assert made.text(value) == text
    assert made.position(value) == pytest.approx(position)
    assert made.ends[0] <= made.position(value) <= made.ends[1]


@pytest.mark.parametrize("value", ["what", None, True, -1.0, 0])
def test_what_has_no_place_on_an_axis_is_nan(value: object) -> None:
    assert math.isnan(field("optim.lr", {"loguniform": [1e-5, 1e-2]}).position(value))


def test_few_whole_numbers_part_trials_and_many_do_not() -> None:
    assert field("model.unfrozen_depth", {"randint": [0, 5]}).values == (0, 1, 2, 3, 4, 5)
    assert field("loop.batch_size", {"randint": [1, 256]}).values == ()
    assert field("loop.batch_size", {"choice": [64, 32, 32]}).values == (32, 64)
