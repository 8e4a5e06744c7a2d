"""Demo tiles as files: class folders and a manifest, as `prepare` takes them."""

import csv
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.errors import UsageError
from trainer.tiles.synthetic.canvas import Canvas
from trainer.tiles.synthetic.stain import Slide, photograph
from trainer.tiles.synthetic.tissues import TISSUES

CLASSES: tuple[str, ...] = tuple(sorted(TISSUES))

CANVAS_PX = 128  # smaller tiles are drawn on at least this many pixels and averaged down
CHUNK = 16  # tiles that a process draws at a time
_SLIDES, _TILES = 0, 1  # what a stream of random numbers is for


def draw_tile(label: str, slide: Slide, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one tile (size, size, 3) of a class: always 112 um of tissue, in as many pixels as asked."""
    canvas = Canvas(size * math.ceil(CANVAS_PX / size), rng)
    haematoxylin, eosin = TISSUES[label](canvas)
    return photograph(haematoxylin, eosin, slide, size, rng)


def draw_slide(index: int, *, seed: int, external: bool = False) -> Slide:
    """Return slide `index` of the set that `seed` makes."""
    name = f"{'external' if external else 'slide'}-{index:02d}"
    return Slide.draw(name, np.random.default_rng([seed, int(external), _SLIDES, index]), external)


def write_source(
    folder: Path,
    *,
    tiles: int,
    size: int,
    seed: int,
    slides: int = 12,
    external: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write `tiles` PNG files in class folders, and manifest.csv (path, label, group); return the manifest's path.

    Classes and slides take turns, so every slide holds every class. Tile k is the same however many are
    drawn. `progress` is called with the number of tiles written so far.
    """
    if tiles < len(CLASSES) * slides:
        raise UsageError(
            f"{tiles} tiles are too few for {slides} slides of {len(CLASSES)} classes: "
            f"ask for at least {len(CLASSES) * slides}, or for fewer slides"
        )
    drawn = [draw_slide(index, seed=seed, external=external) for index in range(slides)]
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
    task = partial(_draw_file, folder, drawn, size, seed, external)
    rows = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(task, range(tiles), chunksize=CHUNK):
            rows.append(row)
            if progress:
                progress(len(rows))
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "group"), *rows])
    return manifest


def _draw_file(
    folder: Path, slides: list[Slide], size: int, seed: int, external: bool, number: int
) -> tuple[str, str, str]:
    """Draw and write one tile; return its path, label and group."""
    label, slide = CLASSES[number % len(CLASSES)], slides[number // len(CLASSES) % len(slides)]
    pixels = draw_tile(label, slide, size, np.random.default_rng([seed, int(external), _TILES, number]))
    path = f"{label}/{label}-{letters(number)}.png"
    Image.fromarray(pixels).save(folder / path, compress_level=1)
    return path, label, slide.name


def letters(number: int) -> str:
    """Return a number as eight capital letters, as in NCT's file names."""
    return "".join(chr(ord("A") + number // 26**place % 26) for place in reversed(range(8)))
