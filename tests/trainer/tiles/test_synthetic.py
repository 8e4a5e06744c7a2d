"""The demo tiles: reproducible, complete, and told apart by texture rather than by colour."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.errors import UsageError
from trainer.tiles.synthetic import CLASSES, draw_slide, draw_tile, write_source
from trainer.tiles.synthetic.source import letters

NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
SLIDES = 8
HELD_OUT = 2


@cache
def tile_set(
    classes: tuple[str, ...] = NCT_CLASSES, external: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles (n, 32, 32, 3), labels and slide numbers: six tiles of every class on every slide."""
    order = [(slide, label) for slide in range(SLIDES) for label in classes for _ in range(6)]
    slides = [draw_slide(number, seed=3, external=external) for number in range(SLIDES)]
    rng = np.random.default_rng([3, int(external)])
    tiles = np.stack([draw_tile(label, slides[slide], 32, rng) for slide, label in order])
    return tiles, np.array([label for _, label in order]), np.array([slide for slide, _ in order])


def held_out_accuracy(features: np.ndarray) -> float:
    """Balanced accuracy of a logistic regression on slides that it was not fitted to."""
    _, labels, slides = tile_set()
    held_out = slides < HELD_OUT
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=5000))
    model.fit(features[~held_out], labels[~held_out])
    return float(balanced_accuracy_score(labels[held_out], model.predict(features[held_out])))


def mean_colours(tiles: np.ndarray) -> np.ndarray:
    return tiles.mean(axis=(1, 2))


def textures(tiles: np.ndarray) -> np.ndarray:
    """The contrast of each tile at five scales, and how much of it lies along one direction: blind to colour."""
    grey = tiles.mean(axis=3)
    grey = grey / grey.mean(axis=(1, 2), keepdims=True)
    smooth = [grey, *(ndimage.gaussian_filter(grey, (0, sigma, sigma)) for sigma in (0.7, 1.4, 2.8, 5.6))]
    bands = [fine - coarse for fine, coarse in pairwise(smooth)]
    spread = [np.log(band.std(axis=(1, 2)) + 1e-4) for band in bands]
    skew = [(band**3).mean(axis=(1, 2)) / (band.std(axis=(1, 2)) ** 3 + 1e-6) for band in bands]
    down, right = np.gradient(smooth[1], axis=(1, 2))
    double = np.hypot((right**2 - down**2).mean(axis=(1, 2)), 2 * (right * down).mean(axis=(1, 2)))
    coherence = double / ((right**2 + down**2).mean(axis=(1, 2)) + 1e-8)
    return np.stack([*spread, *skew, coherence], axis=1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_classes_are_those_of_nct():
    assert CLASSES == NCT_CLASSES


@pytest.mark.parametrize("label", NCT_CLASSES)
@pytest.mark.parametrize("size", [1, 32, 50, 97, 224])
def test_a_tile_of_any_size(label: str, size: int):
    tile = draw_tile(label, draw_slide(0, seed=0), size, np.random.default_rng(0))
    assert tile.shape == (size, size, 3)
    assert tile.dtype == np.uint8


@pytest.mark.parametrize("label", NCT_CLASSES)
def test_a_smaller_tile_shows_the_same_field_of_view(label: str):
    """The same random numbers on the same canvas: 64 px and 128 px pictures differ by their resolution only."""
    large, small = (
        draw_tile(label, draw_slide(0, seed=0), size, np.random.default_rng(5)).astype(float) for size in (128, 64)
    )
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 6


def test_same_arguments_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        write_source(tmp_path / name, tiles=18, size=16, seed=7, slides=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_another_seed_and_the_external_set_are_other_tiles(tmp_path: Path):
    sets = {
        name: files_of(write_source(tmp_path / name, tiles=9, size=16, slides=1, **arguments).parent)
        for name, arguments in {
            "inside": {"seed": 0},
            "seed": {"seed": 1},
            "external": {"seed": 0, "external": True},
        }.items()
    }
    pictures = [data for files in sets.values() for name, data in files.items() if name.endswith(".png")]
    assert len(set(pictures)) == 27


def test_a_tile_does_not_depend_on_how_many_are_drawn(tmp_path: Path):
    few = files_of(write_source(tmp_path / "few", tiles=18, size=16, seed=0, slides=2).parent)
    many = files_of(write_source(tmp_path / "many", tiles=30, size=16, seed=0, slides=2).parent)
    few.pop("manifest.csv")
    assert few.items() < many.items()


@pytest.mark.parametrize("external", [False, True])
def test_the_manifest_lists_every_file_and_every_slide_holds_every_class(tmp_path: Path, external: bool):
    seen: list[int] = []
    manifest = write_source(tmp_path, tiles=60, size=16, seed=0, slides=3, external=external, progress=seen.append)
    rows = pd.read_csv(manifest)
    assert list(rows.columns) == ["path", "label", "group"]
    assert sorted(rows["path"]) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert rows["path"].str.fullmatch(r"([A-Z]+)/\1-[A-Z]{8}\.png").all()
    assert (rows["path"].str.split("/").str[0] == rows["label"]).all()
    table = pd.crosstab(rows["group"], rows["label"])
    assert table.shape == (3, 9)
    assert table.to_numpy().min() >= 2
    assert seen == list(range(1, 61))
    with Image.open(tmp_path / rows["path"][0]) as picture:
        assert (picture.size, picture.mode) == ((16, 16), "RGB")


def test_external_slides_have_other_names(tmp_path: Path):
    inside = pd.read_csv(write_source(tmp_path / "a", tiles=9, size=8, seed=0, slides=1))
    outside = pd.read_csv(write_source(tmp_path / "b", tiles=9, size=8, seed=0, slides=1, external=True))
    assert not set(inside["group"]) & set(outside["group"])


def test_too_few_tiles_for_the_slides_is_said(tmp_path: Path):
    with pytest.raises(UsageError, match="at least 36"):
        write_source(tmp_path / "set", tiles=35, size=16, seed=0, slides=4)
    assert not (tmp_path / "set").exists()


def test_file_names_differ():
    assert len({letters(number) for number in range(2000)}) == 2000


def test_mean_colour_does_not_tell_the_classes_apart():
    assert held_out_accuracy(mean_colours(tile_set()[0])) < 0.70


def test_texture_tells_them_apart_better_than_colour():
    tiles, _, _ = tile_set()
    texture = held_out_accuracy(textures(tiles))
    assert texture > 0.80
    assert texture > held_out_accuracy(mean_colours(tiles)) + 0.10


def test_stains_differ_by_slide_and_are_unit_vectors():
    vectors = np.stack([draw_slide(number, seed=0).vectors for number in range(SLIDES)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1)
    assert vectors.std(axis=0).mean() > 0.01


def blue_share_of_nuclei(external: bool) -> np.ndarray:
    """For each slide, how much of the optical density of lymphocytes' nuclei (the darkest fifth) lies in blue."""
    tiles, labels, slides = tile_set(("BACK", "LYM"), external)
    shares = []
    for number in range(SLIDES):
        pixels = tiles[(labels == "LYM") & (slides == number)].reshape(-1, 3).astype(float)
        light = np.quantile(tiles[(labels == "BACK") & (slides == number)].reshape(-1, 3), 0.9, axis=0)
        dark = pixels[pixels.sum(axis=1) < np.quantile(pixels.sum(axis=1), 0.2)]
        density = -np.log((dark + 1) / (light + 1)).mean(axis=0)
        shares.append(density[2] / density.sum())
    return np.array(shares)


def test_the_external_stain_is_shifted():
    """The external laboratory's haematoxylin lets more blue through, beyond the spread of slides within each."""
    inside, outside = blue_share_of_nuclei(external=False), blue_share_of_nuclei(external=True)
    ranks = roc_auc_score([0] * SLIDES + [1] * SLIDES, -np.concatenate([inside, outside]))
    assert ranks > 0.8
    assert inside.mean() - outside.mean() > max(inside.std(), outside.std())
