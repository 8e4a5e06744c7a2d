"""Maps at stages before the last, where cells are smaller: Grad-CAM and LayerCAM, with a backward pass by captum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.gradcam import BATCH, Floats

LAYERS = ("layer1", "layer2", "layer3", "layer4")
METHODS = GRADCAM, LAYERCAM = ("gradcam", "layercam")


def layer_maps(
    model: nn.Sequential,
    tiles: NDArray[np.uint8],
    transform: Callable[[Tensor], Tensor],
    labels: NDArray[np.int64],
    *,
    layer: str = "layer4",
    method: str = LAYERCAM,
) -> Floats:
    """One map a tile at a stage: (N, h, w), not negative.

    Grad-CAM weighs a channel by its mean gradient, which says little where channels mean different things in different
    places; LayerCAM (Jiang et al., IEEE TIP 30:5875, 2021) weighs each cell of a channel by its own gradient where that
    is positive. Units: of the logit; LayerCAM's cells are not divided by their number.

    Args:
        model: `trainer.model.build`'s network, in evaluation mode.
        tiles: (N, H, W, 3), source pixels.
        transform: source pixels to the network's input.
        labels: (N,) the classes that the maps speak for.
        layer: one of `LAYERS`: maps of 1/4, 1/8, 1/16 and 1/32 of the input's side.
        method: one of `METHODS`.
    """
    if layer not in LAYERS or method not in METHODS:
        raise ValueError(f"{layer}, {method}: layers are {', '.join(LAYERS)}, methods {', '.join(METHODS)}")
    attribute = _gradcam if method == GRADCAM else _layercam
    stage = model.get_submodule(layer)
    parts = (torch.split(torch.from_numpy(each), BATCH) for each in (tiles, labels))
    return np.concatenate(
        [attribute(model, stage, transform(batch), label).numpy() for batch, label in zip(*parts, strict=True)]
    )


def _gradcam(model: nn.Module, stage: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = LayerGradCam(model, stage).attribute(images.requires_grad_(), target=labels, relu_attributions=True)
    return found[:, 0].detach()


def _layercam(model: nn.Module, stage: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Stages end in a ReLU: gradient times activation is positive where the gradient is, and nowhere else."""
    found: Tensor = LayerGradientXActivation(model, stage).attribute(images.requires_grad_(), target=labels)
    return found.clamp(min=0).sum(dim=1).detach()
