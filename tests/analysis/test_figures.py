import io
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from analysis import figures, scores
from trainer.temperature import softmax


def test_class_names_that_a_font_may_lack_get_a_code() -> None:
    names = ["TUM", "肿瘤组织", "$x$", "<script>", "a name that is much too long", "T cells"]
    assert figures.codes(names) == ["TUM", "C2", "C3", "C4", "C5", "T cells"]


@pytest.mark.parametrize("classes", [2, 9, 50])
def test_every_number_of_a_matrix_is_written(classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 3, (classes, classes))
    figure = figures.confusion(matrix, [f"C{number}" for number in range(classes)], "title")
    written = [text.get_text() for text in figure.axes[0].texts]
    is_large = classes == 50
    assert written == ["" if is_large and count == 0 else str(count) for count in matrix.ravel()]
    assert figure.axes[1].get_ylabel() == ("tiles (blank: 0)" if is_large else "tiles")
    zeros = {text.get_color() for text in figure.axes[0].texts if text.get_text() == "0"}
    assert zeros == (set() if is_large else {figures.PALE})
    assert len(figure.axes[0].get_xticklabels()) == len(figure.axes[0].get_yticklabels()) == classes


def test_rows_without_tiles_are_blank() -> None:
    figure = figures.confusion_by_row(np.array([[3, 1], [0, 0]]), ["A", "B"], "title")
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["75.0", "25.0"]


def test_a_share_of_nothing_is_not_one_that_is_rounded_to_nothing() -> None:
    figure = figures.confusion_by_row(np.array([[9999, 1], [0, 5]]), ["A", "B"], "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["100.0", "0.0", "0", "100.0"]


# What protanopes and deuteranopes see of linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, table 1.
SIGHT = {
    "usual": np.eye(3),
    "without red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "without green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def lab(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as it is seen."""
    coded = np.array(to_rgb(colour))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(sight @ linear, 0, 1) / [0.9505, 1.0, 1.089])  # none here is nearly black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_lines_can_be_told_apart_by_colour_or_by_dash(sight: str) -> None:
    for (colour, dash), (other, other_dash) in itertools.combinations(figures.LINES, 2):
        if dash == other_dash or sight == "usual":
            distance = np.linalg.norm(lab(colour, SIGHT[sight]) - lab(other, SIGHT[sight]))
            assert distance > 25, (colour, other)


def test_the_first_epoch_is_an_integer() -> None:
    history = pd.DataFrame({"epoch": [1], "train/loss": [1.0], "val/loss": [1.2]})
    [axes] = figures.loss_curves(history, 1, "title").axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("classes", [2, 9, 50])
def test_every_class_has_a_line_and_the_ten_worst_a_name(classes: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, 600)
    probabilities = softmax(rng.normal(size=(600, classes)) + 2 * np.eye(classes)[labels])
    curves = scores.roc_curves(labels, probabilities)
    names = [f"C{number}" for number in range(classes)]
    figure = figures.roc(curves, scores.micro_roc(labels, probabilities), scores.macro_roc(curves), names, "title")
    worst = sorted(range(classes), key=lambda index: curves[index].area)[:10]
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {f"C{index}  {curves[index].area:.4f}" for index in worst} <= set(written)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(lines) == classes + 2


def test_a_long_curve_is_drawn_by_few_points_that_lie_on_it() -> None:
    rng = np.random.default_rng(2)
    positive = rng.random(50_000) < 0.3
    curve = scores.roc(positive, rng.normal(size=50_000) + positive)
    figure = figures.roc([curve], curve, curve, ["A"], "title")
    x, y = figure.axes[0].lines[0].get_data()
    assert len(x) <= 400
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert set(zip(x, y, strict=True)) <= set(zip(curve.false_positive_rate, curve.true_positive_rate, strict=True))
    assert np.hypot(np.diff(x), np.diff(y)).max() < 0.01


def test_an_undefined_curve_is_left_out() -> None:
    curve = scores.roc(np.array([True, False]), np.array([0.9, 0.1]))
    figure = figures.roc([curve, scores.UNDEFINED], curve, curve, ["A", "B"], "title")
    assert not any("B" in text.get_text() for text in figure.legends[0].get_texts())


def test_overlay_has_the_colours_of_the_bar_and_none_outside() -> None:
    tile = np.full((4, 6, 3), 100, dtype=np.uint8)
    heat = np.full((4, 6), np.nan)
    heat[1, 1], heat[2, 2] = 0.0, 5.0
    drawn = figures.overlay(tile, heat, 5.0)
    bar = figures.colour_bar()
    for (row, column), end in (((1, 1), bar[-1, 0]), ((2, 2), bar[0, 0])):
        expected = figures.MAP_OPACITY * end + (1 - figures.MAP_OPACITY) * 100
        np.testing.assert_allclose(drawn[row, column], expected, atol=1)
    assert (drawn[np.isnan(heat)] == 100).all()


def test_a_map_of_nothing_is_drawn_in_the_lowest_colour() -> None:
    tile = np.zeros((2, 2, 3), dtype=np.uint8)
    nothing = figures.overlay(tile, np.zeros((2, 2)), 0.0)
    np.testing.assert_array_equal(nothing, figures.overlay(tile, np.zeros((2, 2)), 1.0))


def test_figures_are_files_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    history = pd.DataFrame({"epoch": [1], "train/loss": [1.0], "val/loss": [1.2]})
    figure = figures.loss_curves(history, 1, "Loss\n$not mathematics$")
    assert b"<svg" in figures.svg(figure)
    assert figures.svg(figure) == figures.svg(figure)
    figures.png(figure, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (780, 510)
    assert dict(matplotlib.rcParams) == before


def test_map_sheet_shows_tiles_where_their_captions_are() -> None:
    tile, heat = np.full((8, 8, 3), 10, dtype=np.uint8), np.full((8, 8, 3), 90, dtype=np.uint8)
    figure = figures.map_sheet([("A", [(tile, heat, "first")], 2.0), ("B", [], 0.0)], "title")
    canvas = np.asarray(figure.axes[0].images[0].get_array())
    caption = next(text for text in figure.axes[0].texts if text.get_text() == "first")
    column, above = (round(value) for value in caption.get_position())
    assert (canvas[above + 2, column] == 10).all()
    assert (canvas[above + 2, column + 8] == 90).all()


def test_pictures_are_read_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(figures.picture(pixels, format="PNG")))), pixels)
