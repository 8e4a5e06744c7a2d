"""Maps of the page's kinds; at stages before the last, where cells are smaller, with a backward pass by captum."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.gradcam import BATCH, Floats, maps_of_tiles
from analysis.map_kinds import GRADCAM, MapKind


def maps_of_classes(
    model: nn.Sequential,
    tiles: NDArray[np.uint8],
    transform: Callable[[Tensor], Tensor],
    labels: NDArray[np.int64],
    kind: MapKind,
    *,
    centre: bool = False,
) -> Floats:
    """Maps of some classes of each tile: (N, L, h, w), not negative.

    Args:
        model: `trainer.model.build`'s network, in evaluation mode.
        tiles: (N, H, W, 3), source pixels.
        transform: source pixels to the network's input.
        labels: (N, L) the classes that a tile's maps speak for.
        kind: Grad-CAM at the last stage takes one forward pass, any other a backward pass for each of the L.
        centre: each class against the mean of all, as `gradcam.centred`.
    """
    if kind.is_closed_form:
        every = maps_of_tiles(model, tiles, transform, centre=centre)
        return np.take_along_axis(every, labels[:, :, None, None], axis=1)
    seen = _with_centred_logits(model) if centre else model
    return np.stack([layer_maps(seen, tiles, transform, label, kind) for label in labels.T], axis=1)


def layer_maps(
    model: nn.Sequential,
    tiles: NDArray[np.uint8],
    transform: Callable[[Tensor], Tensor],
    labels: NDArray[np.int64],
    kind: MapKind,
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
        kind: maps have 1 / `kind.stride` of the input's side.
    """
    attribute = _gradcam if kind.method == GRADCAM else _layercam
    stage = model.get_submodule(kind.layer)
    parts = (torch.split(torch.from_numpy(each), BATCH) for each in (tiles, np.ascontiguousarray(labels)))
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


class _Centre(nn.Module):
    """Logits (N, C) less their mean over the classes."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits - logits.mean(dim=1, keepdim=True)


def _with_centred_logits(model: nn.Sequential) -> nn.Sequential:
    """The same network and weights; its stages keep their names."""
    return nn.Sequential(OrderedDict([*model.named_children(), ("centre", _Centre())])).eval()
