"""Where the files of a page go, and how pictures come into it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis import figures
from analysis.collect import Model
from analysis.report import cells


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    uri: str
    alt: str
    wide: bool = False
    """Whether it takes the whole width of the page."""


@dataclass(frozen=True)
class Room:
    """How much of a page there is for pictures."""

    tiles: int
    """How many of a class are shown in a set, with their maps; beside the page are all."""
    edge: int
    """Side of a tile, px."""
    outline: int
    """Bytes that a figure may take as outlines. A larger one stands in the page as pixels, which take less; beside it
    lie both of each."""


@dataclass(frozen=True)
class Folder:
    """Where the files of a model or a search go."""

    folder: Path
    room: Room

    def picture(self, figure: Figure, name: str, alt: str, wide: bool = False) -> Picture:
        """Writes a figure as PNG and SVG, and returns it for the page."""
        drawn, pixels = figures.svg(figure), self.folder / f"{name}.png"
        (self.folder / f"{name}.svg").write_bytes(drawn)
        figures.png(figure, pixels)
        uri = as_uri("image/svg+xml", drawn)
        if len(uri) > self.room.outline:
            uri = as_uri("image/webp", figures.picture(np.asarray(Image.open(pixels)), format="WEBP", lossless=True))
        return Picture(uri, alt, wide)

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Writes a table as CSV and Parquet, and returns it for the page."""
        cells.write(frame, self.folder / name)
        return frame


@dataclass(frozen=True)
class Writer(Folder):
    """Where the files of a model go, and how it is drawn."""

    model: Model
    codes: list[str]

    def title(self, what: str, split: str, kind: str) -> str:
        """What a figure shows, and below it of which model and set."""
        return f"{what}\n{self.model.name} · {split} · {kind}"


def webp_uri(pixels: figures.Pixels) -> str:
    """A picture (H, W, 3) as it stands in a page."""
    return as_uri("image/webp", figures.picture(pixels, format="WEBP", quality=82))


def as_uri(kind: str, content: bytes) -> str:
    """The content of a file of that kind (MIME type) as it stands in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
