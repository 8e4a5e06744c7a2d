from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.audit.blockiness import blockiness
from analysis.audit.measure import TEXTURE, measure
from analysis.audit.sets import sets_of_stores
from tests.analysis.audit.made_tiles import glass, make_store, tissue


def test_every_measure_is_that_of_the_tile_in_its_row(tmp_path: Path) -> None:
    tiles = {"A": tissue(70, 48), "B": tissue(70, 40, 1)}
    first = make_store(tmp_path / "first", tiles["A"], ["A", "B"] * 35)
    second = make_store(tmp_path / "second", tiles["B"], ["A", "B"] * 35)
    sets = sets_of_stores([first, second])
    done: list[int] = []
    measures = measure(sets, done.append)
    assert sum(done) == 140
    for row, (store, path) in enumerate(sets.tiles[["store", "path"]].itertuples(index=False)):
        tile = tiles["AB"[store]][int(Path(path).stem)]
        assert measures.mean[row] == pytest.approx(tile.mean(axis=(0, 1)), rel=1e-5)
        assert measures.deviation[row] == pytest.approx(tile.std(axis=(0, 1)), rel=1e-5)
        bins = [np.histogram(tile[..., channel], 16, (0, 256))[0] / tile[..., channel].size for channel in range(3)]
        assert measures.histogram[row] == pytest.approx(np.array(bins), abs=1e-6)
        grey = np.asarray(Image.fromarray(tile).convert("L"))
        assert measures.blockiness[row] == pytest.approx(blockiness(grey[None])[0], rel=1e-5)
        own = {tuple(pixel) for pixel in tile.reshape(-1, 3)}
        assert {tuple(pixel) for pixel in measures.pixels[row]} <= own


def test_texture_tells_tissue_from_glass(tmp_path: Path) -> None:
    sets = sets_of_stores([make_store(tmp_path / "store", [*tissue(20), *glass(20)], ["T"] * 20 + ["B"] * 20)])
    measures = measure(sets)
    assert (measures.is_blank == (sets.tiles["label"] == "B")).all()
    assert measures.texture.shape == (40,)
    assert measures.texture[measures.is_blank].max() < TEXTURE / 2
    assert measures.texture[~measures.is_blank].min() > 2 * TEXTURE
