from functools import partial

import numpy as np
import pytest
import torch

from analysis.gradcam import maps_of_tiles
from analysis.layer_maps import layer_maps, maps_of_classes
from analysis.map_kinds import GRADCAM, LAYERCAM, LAYERS, MapKind
from trainer.config import AugmentSection
from trainer.model import build
from trainer.tiles.augment import evaluation_batch

TRANSFORM = partial(evaluation_batch, augment=AugmentSection(input_size=64))
LABELS = np.array([2, 0, 1])


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> torch.nn.Sequential:
    made = build(3, seed=0).eval()
    torch.nn.init.normal_(made.get_submodule("fc").weight, generator=torch.Generator().manual_seed(0))
    return made


def by_hand(model: torch.nn.Sequential, tiles: np.ndarray, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out of a layer, and the gradients of the labels' logits with respect to it."""
    at = [name for name, _ in model.named_children()].index(layer) + 1
    with torch.no_grad():
        reached = model[:at](TRANSFORM(torch.from_numpy(tiles)))
    reached.requires_grad_()
    chosen = model[at:](reached).gather(1, torch.from_numpy(LABELS)[:, None]).sum()
    return reached.detach(), torch.autograd.grad(chosen, reached)[0]


@pytest.mark.parametrize(("layer", "side"), list(zip(LAYERS, (16, 8, 4, 2), strict=True)))
def test_both_are_what_their_papers_say(model: torch.nn.Sequential, tiles: np.ndarray, layer: str, side: int) -> None:
    reached, slopes = by_hand(model, tiles, layer)
    gradcam = (slopes.mean(dim=(2, 3), keepdim=True) * reached).sum(dim=1).relu().numpy()
    layercam = (slopes.relu() * reached).sum(dim=1).relu().numpy()
    for method, expected in ((GRADCAM, gradcam), (LAYERCAM, layercam)):
        found = layer_maps(model, tiles, TRANSFORM, LABELS, MapKind(layer, method))
        assert found.shape == (3, side, side)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())
        assert found.max() > 0


def test_at_the_last_stage_gradcam_is_the_closed_form(model: torch.nn.Sequential, tiles: np.ndarray) -> None:
    expected = maps_of_tiles(model, tiles, TRANSFORM)[np.arange(3), LABELS]
    found = layer_maps(model, tiles, TRANSFORM, LABELS, MapKind())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_batches_do_not_matter(model: torch.nn.Sequential, tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = layer_maps(model, tiles, TRANSFORM, LABELS, MapKind("layer3", LAYERCAM))
    monkeypatch.setattr("analysis.layer_maps.BATCH", 2)
    parts = layer_maps(model, tiles, TRANSFORM, LABELS, MapKind("layer3", LAYERCAM))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6 * whole.max())


@pytest.mark.parametrize("kind", [MapKind(), MapKind("layer3", LAYERCAM)], ids=str)
def test_several_classes_of_a_tile_and_their_centred_maps(
    model: torch.nn.Sequential, tiles: np.ndarray, kind: MapKind
) -> None:
    """Of a head less its mean over the classes, the logits are those less their mean, and so are the gradients."""
    labels = np.array([[2, 0], [0, 1], [1, 1]])
    found = maps_of_classes(model, tiles, TRANSFORM, labels, kind)
    side = 64 // kind.stride
    assert found.shape == (3, 2, side, side)
    for column, label in enumerate(labels.T):
        one = layer_maps(model, tiles, TRANSFORM, label, kind)
        np.testing.assert_allclose(found[:, column], one, rtol=1e-4, atol=1e-6 * one.max())
    shifted = build(3, seed=0).eval()
    shifted.load_state_dict(model.state_dict())
    weight = shifted.get_submodule("fc").get_parameter("weight")
    weight.data -= weight.data.mean(dim=0)
    expected = maps_of_classes(shifted, tiles, TRANSFORM, labels, kind)
    centred = maps_of_classes(model, tiles, TRANSFORM, labels, kind, centre=True)
    np.testing.assert_allclose(centred, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert np.abs(centred - found).max() > 0.01 * found.max()


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer5.*layer1, layer2, layer3, layer4"):
        MapKind("layer5")
    with pytest.raises(ValueError, match=r"smoothgrad at layer4: .*methods gradcam, layercam"):
        MapKind(method="smoothgrad")
