from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import figures, search_figures
from analysis.fields import fields
from analysis.search import Search, read_search
from tests.analysis.made_searches import SPACE, change, choose, drawn_search, write_search, write_trial

Space = dict[str, Any]
CATEGORIES: Space = {"model.weights": {"choice": ["random", "$x$", "肿瘤", "a/very/long/path/to/weights.pth"]}}
THREE: Space = {
    "loop.batch_size": {"qrandint": [16, 256, 16]},
    "optim.label_smoothing": {"uniform": [0.0, 0.2]},
    "augment.rot90": {"choice": [True, False]},
}
GRID: Space = {"optim.lr": {"grid": [1e-5, 1e-4, 1e-3]}, "optim.name": {"grid": ["adam", "sgd"]}}
FIXED: Space = {"optim.lr": {"loguniform": [1e-3, 1e-3]}, "model.unfrozen_depth": {"choice": [2]}}


def draw(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of a trial."""
    drawn = {}
    for key, written in space.items():
        [(form, content)] = written.items()
        if form in ("choice", "grid"):
            drawn[key] = content[rng.integers(len(content))]
        elif form == "loguniform":
            drawn[key] = float(np.exp(rng.uniform(*np.log(content))))
        else:
            drawn[key] = 16 * int(rng.integers(1, 17)) if form == "qrandint" else float(rng.uniform(*content))
    return drawn


def made(path: Path, space: Space, trials: int) -> Search:
    rng = np.random.default_rng(0)
    search = write_search(path, space=space)
    for number in range(1, trials + 1):
        status = ("done", "stopped", "diverged", "waiting", "running")[0 if number == 1 else rng.integers(5)]
        values = () if status in ("diverged", "waiting") else tuple(rng.uniform(0.3, 0.9, 2))
        write_trial(search, number, draw(space, rng), values=values, status=status, tiles=30)
    if trials:
        choose(search, 1, [1], 1)
    return read_search(search.path)


def all_figures(search: Search) -> list[Figure]:
    searched = fields(search.space)
    axis, by = search_figures.main_fields(searched)
    other = by or next((field for field in searched if field is not axis), None)
    drawn = [
        search_figures.score_by_field(search, axis, by, "title"),
        search_figures.parallel_coordinates(search, searched, "title"),
        search_figures.all_curves(search, by, "title"),
        search_figures.cost(search, by, "title"),
    ]
    return drawn if other is None else [*drawn, search_figures.score_map(search, axis, other, "title")]


@pytest.mark.parametrize("trials", [0, 1, 12])
@pytest.mark.parametrize("space", [SPACE, CATEGORIES, THREE, GRID, FIXED, {"optim.lr": SPACE["optim.lr"]}])
def test_every_figure_is_drawn_whatever_is_searched(tmp_path: Path, space: Space, trials: int) -> None:
    for figure in all_figures(made(tmp_path / "s", space, trials)):
        assert b"<svg" in figures.svg(figure)


def test_trials_without_any_epoch_can_be_drawn(tmp_path: Path) -> None:
    search = write_search(tmp_path / "s")
    for number in (1, 2):
        write_trial(search, number, {"optim.lr": 1e-3, "model.unfrozen_depth": 1}, values=(), status="running")
    for figure in all_figures(read_search(search.path)):
        assert b"<svg" in figures.svg(figure)


def test_the_main_fields_are_learning_rate_and_depth_or_the_nearest() -> None:
    def names(space: Space) -> tuple[str, str | None]:
        axis, by = search_figures.main_fields(fields(space))
        return axis.name, by and by.name

    assert names({"optim.name": {"choice": ["a"]}, **dict(reversed(SPACE.items()))}) == ("lr", "unfrozen_depth")
    assert names(THREE) == ("batch_size", "rot90")
    assert names(CATEGORIES) == ("weights", None)
    assert names({"optim.a": {"choice": [1, 2]}, "optim.b": {"loguniform": [1, 10]}}) == ("b", "a")


def test_points_stand_at_their_learning_rate_and_score(tmp_path: Path) -> None:
    search = read_search(drawn_search(tmp_path / "s", 20).path)
    axis, by = search_figures.main_fields(fields(search.space))
    [axes] = search_figures.score_by_field(search, axis, by, "title").axes
    drawn = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index]
        for line in axes.lines
        if line.get_markersize() == 4.5
    }
    scored = [trial for trial in search.trials if trial.value is not None]
    expected = {(trial.parameters["optim.lr"], trial.value) for trial in scored}
    assert len(drawn) == len(expected)
    for (x, y), (rate, value) in zip(sorted(drawn), sorted(expected), strict=True):  # type: ignore[type-var]
        assert (x, y) == pytest.approx((rate, value))
    hollow = [line for line in axes.lines if line.get_markersize() == 4.5 and line.get_markerfacecolor() == "white"]
    assert len(hollow) == sum(trial.status != "done" for trial in scored)
    broken = [line for line in axes.lines if line.get_marker() == "x"]
    lost = [trial for trial in search.trials if trial.value is None and trial.status == "diverged"]
    assert len(broken) == len(lost)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_cell_of_the_map_holds_its_best_score(tmp_path: Path, mode: str) -> None:
    search = write_search(tmp_path / "s", space=GRID, mode=mode)
    scores = {("adam", 1e-5): (0.4, 0.6), ("sgd", 1e-3): (0.5,)}
    trials = [(name, rate, value) for (name, rate), values in scores.items() for value in values]
    for number, (name, rate, value) in enumerate(trials, start=1):
        write_trial(search, number, {"optim.name": name, "optim.lr": rate}, values=(value,), tiles=6, value=value)
    axis, by = search_figures.main_fields(fields(read_search(search.path).space))
    assert by is not None
    figure = search_figures.score_map(read_search(search.path), axis, by, "title")
    best = 0.6 if mode == "max" else 0.4
    image = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    np.testing.assert_array_equal(image, [[best, np.nan, np.nan], [np.nan, np.nan, 0.5]])
    assert {text.get_text() for text in figure.axes[0].texts} == {f"{best:.3f}\n(2)", "0.500"}


def test_each_trial_lies_in_one_part_of_an_interval(tmp_path: Path) -> None:
    search = read_search(drawn_search(tmp_path / "s", 40).path)
    axis, _ = search_figures.main_fields(fields(search.space))
    parts = search_figures._cells(axis)
    assert (parts[0][1], parts[-1][2]) == axis.ends
    for trial in search.trials:
        place = search_figures._cell(parts, axis, trial)
        assert place is not None
        assert parts[place][1] <= np.log10(trial.parameters["optim.lr"]) <= parts[place][2]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_front_is_what_no_cheaper_trial_beats(tmp_path: Path, mode: str) -> None:
    search = read_search(drawn_search(tmp_path / "s", 40).path)
    change(search.directory, mode=mode)
    search = read_search(search.directory.path)
    trials = [trial for trial in search.trials if trial.value is not None]
    front = search_figures._front(search, trials)
    better = max if mode == "max" else min
    for spent, value in front:
        within = [trial.value for trial in trials if trial.worker_seconds <= spent]
        assert value == better(within)  # type: ignore[type-var]
    assert front[-1][1] == better(trial.value for trial in trials)  # type: ignore[type-var]


def test_values_in_figures_are_short_and_plain() -> None:
    [field] = fields(CATEGORIES)
    labels = [search_figures.label(field, value) for value in field.values]
    assert labels == ["random", r"\$x\$", "#3", "…o/weights.pth"]
    assert all(len(text) <= search_figures.LONGEST for text in labels)


def test_bars_are_the_shares_and_what_is_left() -> None:
    [axes] = search_figures.importance_bars({"lr": 0.6, "unfrozen_depth": 0.1}, "title").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([60, 10, 30])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["lr", "unfrozen depth", "several together"]
