"""The built-in demo tiles: nine colorectal tissues drawn in H&E, by slide."""

from trainer.tiles.synthetic.source import CLASSES, draw_slide, draw_tile, write_source
from trainer.tiles.synthetic.stain import Slide

__all__ = ["CLASSES", "Slide", "draw_slide", "draw_tile", "write_source"]
