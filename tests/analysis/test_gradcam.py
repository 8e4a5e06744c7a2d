import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch.nn import functional as F

from analysis.gradcam import centred, class_maps, head_weights, maps_of_tiles, on_tile, per_cell
from trainer.config import AugmentSection
from trainer.model import build
from trainer.tiles.augment import evaluation_batch, evaluation_box


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_maps_are_captums(tiles: np.ndarray) -> None:
    model = build(4, seed=0).eval()
    torch.nn.init.normal_(model.get_submodule("fc").weight, generator=torch.Generator().manual_seed(0))
    augment = AugmentSection(input_size=64)

    def transform(batch: torch.Tensor) -> torch.Tensor:
        return evaluation_batch(batch, augment)

    ours = maps_of_tiles(model, tiles, transform)
    assert ours.shape == (3, 4, 2, 2)
    images = transform(torch.from_numpy(tiles)).requires_grad_()
    explainer = LayerGradCam(model, model.get_submodule("layer4"))
    for label in range(4):
        theirs = explainer.attribute(images, target=label, relu_attributions=True)[:, 0].detach().numpy()
        np.testing.assert_allclose(ours[:, label], theirs, rtol=1e-6, atol=1e-6 * theirs.max())
    assert ours.max() > 0


def test_a_map_adds_up_to_the_logit() -> None:
    rng = np.random.default_rng(1)
    features, head = rng.random((2, 6, 3, 3)), rng.random((4, 6))  # nothing negative: nothing is cut off
    np.testing.assert_allclose(
        class_maps(features, head).sum(axis=(2, 3)), features.mean(axis=(2, 3)) @ head.T, rtol=1e-6
    )


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (7, 7)])
def test_over_the_whole_tile_it_is_torchs_bilinear(size: tuple[int, int]) -> None:
    cells = np.random.default_rng(2).random((7, 5)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(cells)[None, None], size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(on_tile(cells, size, (0.0, 0.0, *map(float, size))), expected[0, 0].numpy(), atol=1e-6)


def test_a_centre_crop_is_drawn_at_the_centre_and_nowhere_else() -> None:
    cells = np.random.default_rng(3).random((4, 4)).astype(np.float32)
    inside = F.interpolate(torch.from_numpy(cells)[None, None], size=(48, 48), mode="bilinear", align_corners=False)
    drawn = on_tile(cells, (64, 64), (8.0, 8.0, 48.0, 48.0))
    np.testing.assert_allclose(drawn[8:56, 8:56], inside[0, 0].numpy(), atol=1e-6)
    outside = np.ones((64, 64), dtype=bool)
    outside[8:56, 8:56] = False
    assert np.isnan(drawn[outside]).all()


@pytest.mark.parametrize(
    "augment",
    [AugmentSection(input_size=64), AugmentSection(input_size=64, eval_resize=80, eval_crop=64)],
    ids=["whole", "centre crop"],
)
def test_a_spot_is_drawn_where_it_is_in_the_tile(augment: AugmentSection) -> None:
    """A bright spot in the tile, seen through the evaluation transform, comes back to its own pixels."""
    tile = np.zeros((1, 96, 120, 3), dtype=np.uint8)
    tile[0, 40:48, 70:78] = 255
    seen = evaluation_batch(torch.from_numpy(tile), augment)[0].mean(dim=0)
    cells = F.avg_pool2d((seen - seen.min())[None], 4)[0].numpy()
    drawn = np.nan_to_num(on_tile(cells, (96, 120), evaluation_box((96, 120), augment)))
    rows, columns = np.mgrid[:96, :120] + 0.5
    centre = [(drawn * axis).sum() / drawn.sum() for axis in (rows, columns)]
    np.testing.assert_allclose(centre, [44, 74], atol=0.5)


def test_centred_maps_do_not_see_what_all_classes_share() -> None:
    """Adding the same to the logits of all classes changes no probability and no centred map, but plain maps."""
    rng = np.random.default_rng(4)
    features, head = rng.random((2, 6, 3, 3)), rng.normal(size=(4, 6)).astype(np.float32)
    shared = head + rng.normal(size=6).astype(np.float32)
    np.testing.assert_allclose(
        class_maps(features, centred(shared)), class_maps(features, centred(head)), rtol=1e-4, atol=1e-6
    )
    assert not np.allclose(class_maps(features, shared), class_maps(features, head), atol=1e-2)


def test_centred_maps_are_captums_of_the_logit_less_the_mean(tiles: np.ndarray) -> None:
    model = build(4, seed=0).eval()
    augment = AugmentSection(input_size=64)

    def transform(batch: torch.Tensor) -> torch.Tensor:
        return evaluation_batch(batch, augment)

    def less_the_mean(images: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        return logits - logits.mean(dim=1, keepdim=True)

    ours = maps_of_tiles(model, tiles, transform, centre=True)
    explainer = LayerGradCam(less_the_mean, model.get_submodule("layer4"))
    images = transform(torch.from_numpy(tiles)).requires_grad_()
    theirs = explainer.attribute(images, target=2, relu_attributions=True)[:, 0].detach().numpy()
    np.testing.assert_allclose(ours[:, 2], theirs, rtol=1e-4, atol=1e-6 * theirs.max())
    assert head_weights(model).shape == (4, 2048)


def test_the_mean_of_a_cell_is_that_of_its_pixels() -> None:
    pixels = np.random.default_rng(5).random((2, 64, 96))
    cells = per_cell(pixels, (4, 3), (0.0, 0.0, 64.0, 96.0))
    np.testing.assert_allclose(cells, pixels.reshape(2, 4, 16, 3, 32).mean(axis=(2, 4)))


def test_a_pixel_in_two_cells_counts_in_both_and_one_outside_in_none() -> None:
    pixels = np.arange(5.0)[None, :, None] * np.ones((1, 1, 5))
    # Rows 0.5 to 4.5 in two cells: 0.5-2.5 holds half of 0, all of 1 and half of 2.
    cells = per_cell(pixels, (2, 1), (0.5, 0.0, 4.0, 5.0))[0, :, 0]
    np.testing.assert_allclose(cells, [(0.5 * 0 + 1 + 0.5 * 2) / 2, (0.5 * 2 + 3 + 0.5 * 4) / 2])
    beyond = per_cell(pixels, (2, 1), (-2.0, 0.0, 4.0, 5.0))[0, :, 0]
    assert np.isnan(beyond[0])
    assert beyond[1] == 0.5
