"""Tissuegrid: what it learns. Tiles, model, training, checkpoints."""
