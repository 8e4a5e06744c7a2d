"""2,000 drawn TIFFs, in the three ways in which a data set arrives: a folder, a stored zip and a deflated zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

from PIL import Image

from trainer.tiles.synthetic import write_source

DRAWN, SIZE, SEED = 250, 224, 0
SYMMETRIES = (None, *Image.Transpose)
"""Each drawn tile is written in all eight symmetries of the square, which makes eight tiles of different pixels."""


def make_sources(folder: Path) -> dict[str, Path]:
    """Draws the tiles and writes them as packbits TIFFs in class folders, and in zips of those."""
    write_source(folder / "drawn", tiles=DRAWN, size=SIZE, seed=SEED)
    tiffs = folder / "tiffs"
    for file in sorted((folder / "drawn").glob("*/*.png")):
        (tiffs / file.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            for number, symmetry in enumerate(SYMMETRIES):
                turned = image if symmetry is None else image.transpose(symmetry)
                turned.save(tiffs / file.parent.name / f"{file.stem}-{number}.tif", compression="packbits")
    stored = _zip(tiffs, folder / "stored.zip", zipfile.ZIP_STORED)
    deflated = _zip(tiffs, folder / "deflated.zip", zipfile.ZIP_DEFLATED)
    return {"TIFF folder": tiffs, "TIFF stored zip": stored, "TIFF deflated zip": deflated}


def _zip(folder: Path, file: Path, compression: int) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for path in sorted(folder.glob("*/*")):
            archive.write(path, str(path.relative_to(folder)))
    return file
