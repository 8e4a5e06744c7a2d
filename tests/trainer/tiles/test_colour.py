"""Colours against torchvision, and stains against a plain computation pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as TF

from trainer.tiles.colour import jitter_colour, jitter_stain, shift_hue

# Ruifrok & Johnston, Anal Quant Cytol Histol 23:291 (2001), as in skimage.color's `rgb_from_hed`.
HAEMATOXYLIN, EOSIN, DAB = [0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]


def stained(image: NDArray[np.floating], relative: NDArray[np.floating], absolute: NDArray[np.floating]) -> NDArray:
    """HED jitter of a picture (3, H, W) in steps: optical density, stains, their change, and back again (float64)."""
    if not np.any(relative) and not np.any(absolute):
        return image
    vectors = np.array([HAEMATOXYLIN, EOSIN, DAB])
    density = -np.log10(np.maximum(image.astype(np.float64), 1 / 255)).reshape(3, -1)
    amounts = np.linalg.solve(vectors.T, density)
    for stain in range(3):
        amounts[stain] = (1.0 + relative[stain]) * amounts[stain] + absolute[stain]
    return np.clip(10.0 ** -(vectors.T @ amounts), 0, 1).reshape(image.shape)


def make_images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Noise, with pixels that are black, white, grey or of one channel alone in a corner."""
    images = torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
    for place, colour in enumerate(special):
        images[:, :, 0, place] = torch.tensor(colour, dtype=torch.float32)
    return images


def test_stain_jitter_is_tellez_on_ruifroks_stains() -> None:
    images = make_images(6)
    shifts = torch.rand((6, 2, 3), generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    ours = jitter_stain(images, shifts).numpy()
    theirs = np.stack([stained(image.numpy(), *shift.numpy()) for image, shift in zip(images, shifts, strict=True)])
    assert np.abs(ours - theirs).max() < 1e-5
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_more_haematoxylin_is_bluer_and_more_eosin_is_redder() -> None:
    """What the stains are called for: on a pale pink-violet pixel."""
    pixel = torch.tensor([0.8, 0.6, 0.8])[None, :, None, None]
    blue, red = (
        jitter_stain(pixel, torch.eye(3)[stain] * torch.tensor([[[0.0], [0.2]]])).flatten() for stain in (0, 1)
    )
    assert blue[2] / blue[0] > 0.8 / 0.8
    assert red[1] < 0.6
    assert red[0] > blue[0]


def test_no_shift_of_stains_changes_nothing_but_black() -> None:
    images = make_images(2)
    same = jitter_stain(images, torch.zeros(2, 2, 3))
    assert (same - images.clamp(min=1 / 255)).abs().max() < 1e-5


@pytest.mark.parametrize("shift", [-0.5, -0.31, -0.05, 0.0, 0.02, 0.25, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    images = make_images(3)
    ours = shift_hue(images, torch.full((3,), shift))
    assert (ours - TF.adjust_hue(images, shift)).abs().max() < 1e-5


@given(st.integers(0, 2**32 - 1))
def test_hue_turns_the_circle_and_keeps_the_largest_and_smallest_channel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.random((4, 3, 2, 2), dtype=np.float32))
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, 4).astype(np.float32))
    turned = shift_hue(images, shift)
    assert torch.allclose(turned.amax(1), images.amax(1), atol=1e-6)
    assert torch.allclose(turned.amin(1), images.amin(1), atol=1e-6)
    assert torch.allclose(shift_hue(turned, -shift), images, atol=1e-4)


def test_each_tile_has_its_own_factors_and_order() -> None:
    """All 24 orders at once, against torchvision one tile at a time."""
    orders = [
        (order, turn)
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2], [0, 2, 1], [2, 0, 1])
        for turn in range(4)
    ]
    images = make_images(len(orders))
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.6, 1.4, (len(orders), 3)).astype(np.float32)
    hue = rng.uniform(-0.2, 0.2, len(orders)).astype(np.float32)
    order, hue_turn = np.array([o for o, _ in orders]), np.array([turn for _, turn in orders])
    ours = jitter_colour(images, torch.from_numpy(factors), torch.from_numpy(order), hue, hue_turn)
    passes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for i, (mine, place) in enumerate(orders):
        steps = [(passes[kind], float(factors[i, kind])) for kind in mine]
        steps.insert(place, (TF.adjust_hue, float(hue[i])))
        theirs = images[i]
        for adjust, by in steps:
            theirs = adjust(theirs, by)
        assert (ours[i] - theirs).abs().max() < 1e-4, (mine, place)


def test_the_images_that_are_given_stay_as_they_are() -> None:
    images = make_images(4)
    before = images.clone()
    hue = np.full(4, 0.1, np.float32)
    jitter_colour(images, torch.ones(4, 3), torch.zeros(4, 3, dtype=torch.int64), hue, np.zeros(4, np.int64))
    jitter_stain(images, torch.full((4, 2, 3), 0.1))
    assert torch.equal(images, before)
