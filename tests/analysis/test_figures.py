import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis import figures, scores


def test_class_names_that_a_font_may_lack_get_a_code() -> None:
    names = ["TUM", "肿瘤组织", "$x$", "<script>", "a name that is much too long", "T cells"]
    assert figures.codes(names) == ["TUM", "C2", "C3", "C4", "C5", "T cells"]


@pytest.mark.parametrize("classes", [2, 9, 50])
def test_every_number_of_a_matrix_is_written(classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 3, (classes, classes))
    figure = figures.confusion(matrix, [f"C{number}" for number in range(classes)], "title")
    written = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(filter(None, written)) == sorted(str(count) for count in matrix.ravel() if count)
    assert len(figure.axes[0].get_xticklabels()) == len(figure.axes[0].get_yticklabels()) == classes


def test_rows_without_tiles_are_blank() -> None:
    figure = figures.confusion_by_row(np.array([[3, 1], [0, 0]]), ["A", "B"], "title")
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["75.0", "25.0"]


@pytest.mark.parametrize("classes", [2, 9, 50])
def test_every_class_has_a_line_and_the_ten_worst_a_name(classes: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, 600)
    probabilities = scores.softmax(rng.normal(size=(600, classes)) + 2 * np.eye(classes)[labels])
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
