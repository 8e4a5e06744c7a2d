"""Which maps a page shows: how they are made, and at which of the network's stages."""

from __future__ import annotations

from dataclasses import dataclass

STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
"""Side in input pixels of a map's cell, by stage of a ResNet."""
LAYERS = tuple(STRIDES)
METHODS = GRADCAM, LAYERCAM = ("gradcam", "layercam")
NAMES = {GRADCAM: "Grad-CAM", LAYERCAM: "LayerCAM"}


@dataclass(frozen=True)
class MapKind:
    """A way to make maps, at one stage."""

    layer: str = LAYERS[-1]
    method: str = GRADCAM

    def __post_init__(self) -> None:
        if self.layer not in LAYERS or self.method not in METHODS:
            raise ValueError(f"{self}: layers are {', '.join(LAYERS)}, methods {', '.join(METHODS)}")

    @property
    def is_closed_form(self) -> bool:
        """Whether a cell's value is what it adds to the logit, and the maps of all classes need one forward pass."""
        return self == MapKind()

    @property
    def stride(self) -> int:
        """Side in input pixels of a cell."""
        return STRIDES[self.layer]

    @property
    def unit(self) -> str:
        """What a cell's value is."""
        if self.is_closed_form:
            return "what a cell adds to the class's logit"
        if self.method == LAYERCAM:
            return "activations times gradients of the class's logit, without those that lower it"
        return "activations times their mean gradient of the class's logit"

    def __str__(self) -> str:
        return f"{NAMES.get(self.method, self.method)} at {self.layer}"
