"""The built-in demonstration: draws tiles, packs them and trains on them. Everything lies in `demo/`."""

from __future__ import annotations

from pathlib import Path

from trainer.config import load_config
from trainer.launch import train
from trainer.progress import track
from trainer.rundir import RunDir
from trainer.stop import StopSignals
from trainer.tiles.pack import PackOptions
from trainer.tiles.prepare import prepare
from trainer.tiles.synthetic import write_source

CONFIG = Path("configs/demo.yaml")
FOLDER = Path("demo")
SIZE, SEED = 64, 0
TILES, SLIDES = 1440, 12
EXTERNAL_TILES, EXTERNAL_SLIDES = 450, 4
MPP = 112 / SIZE  # a drawn tile is 112 um wide


def run_demo() -> tuple[int, RunDir]:
    """Makes what is not there yet; returns the exit code of the training and the run."""
    config = load_config(CONFIG)
    sets = [
        ("tiles", config.data.tiles, TILES, SLIDES, False),
        ("other-stain", config.data.external["other-stain"], EXTERNAL_TILES, EXTERNAL_SLIDES, True),
    ]
    for name, store, tiles, slides, external in sets:
        prepare(_drawn(FOLDER / "source" / name, tiles, slides, external), store, PackOptions(mpp=MPP))
    assert config.run.name is not None, "configs/demo.yaml names its run"
    with StopSignals() as stop:
        return train(config, stop), RunDir(config.run.storage / config.run.name)


def _drawn(folder: Path, tiles: int, slides: int, external: bool) -> Path:
    """The manifest of a set of drawn tiles. It is written last, so where it is there, the set is whole."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        with track(f"Drawing {folder.name}", tiles) as advance:
            write_source(
                folder,
                tiles=tiles,
                size=SIZE,
                seed=SEED,
                slides=slides,
                external=external,
                progress=lambda _: advance(1),
            )
    return manifest
