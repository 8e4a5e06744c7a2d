import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.map_tests.perturbation import (
    BLURRED,
    CENTRE,
    DELETION,
    FILLS,
    INSERTION,
    MEAN,
    ORDERS,
    OWN,
    SHARES,
    SMOOTH,
    STEPS,
    WAYS,
    perturb,
)

PATCH = slice(0, 8), slice(24, 32)
"""A corner, a quarter of the side: one cell of a map of 4 x 4."""


class PatchReader(nn.Module):
    """Says class 1 where a patch of the input is chequered, and looks at nothing else."""

    def forward(self, images: Tensor) -> Tensor:
        patch = images[:, 0, PATCH[0], PATCH[1]]
        seen = (patch - patch.mean(dim=(1, 2), keepdim=True)).abs().mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(seen), 20 * (seen - 0.25)], dim=1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    made = 0.45 + 0.1 * torch.rand((12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    made[:, :, PATCH[0], PATCH[1]] = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).tile(4, 4)
    return made


def on_the_patch() -> np.ndarray:
    maps = np.zeros((12, 4, 4), dtype=np.float32)
    maps[:, 0, 3] = 1
    return maps


def area(areas: np.ndarray, order: str, fill: str, way: str) -> np.ndarray:
    return areas[:, ORDERS.index(order), FILLS.index(fill), WAYS.index(way)]


def test_a_perfect_map_is_faster_than_a_random_one_and_than_the_centre(images: Tensor) -> None:
    labels = np.ones(12, dtype=np.int64)
    areas = perturb(PatchReader(), images, on_the_patch(), labels, seed=0).areas
    for fill in FILLS:
        own = {way: area(areas, OWN, fill, way) for way in WAYS}
        assert own[DELETION].max() < 0.2
        assert own[INSERTION].min() > 0.8
        for other in (SMOOTH, CENTRE):
            assert own[DELETION].mean() < area(areas, other, fill, DELETION).mean() - 0.1
            assert own[INSERTION].mean() > area(areas, other, fill, INSERTION).mean() + 0.1


def test_a_map_beside_the_patch_is_slower(images: Tensor) -> None:
    labels = np.ones(12, dtype=np.int64)
    wrong = perturb(PatchReader(), images, on_the_patch().max() - on_the_patch(), labels, seed=0).areas
    assert (area(wrong, OWN, MEAN, DELETION) > area(wrong, SMOOTH, MEAN, DELETION)).mean() > 0.8


def test_the_ends_are_the_whole_image_and_what_it_is_filled_with(images: Tensor) -> None:
    labels = np.ones(12, dtype=np.int64)
    found = perturb(PatchReader(), images, on_the_patch(), labels, seed=0)
    whole = PatchReader()(images).double().softmax(1)[:, 1].numpy()
    grey = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    nothing = PatchReader()(grey).double().softmax(1)[:, 1].numpy()
    at = FILLS.index(MEAN)
    for order in range(len(ORDERS)):
        deletion, insertion = found.probabilities[:, order, at, 0], found.probabilities[:, order, at, 1]
        np.testing.assert_allclose(deletion[:, [0, -1]], np.stack([whole, nothing], 1))
        np.testing.assert_allclose(insertion[:, [0, -1]], np.stack([nothing, whole], 1))
    assert found.images == 12 * (3 + len(ORDERS) * len(FILLS) * len(WAYS) * (STEPS - 1)) == 12 * 63


class Counter(nn.Module):
    """Says how much of the image is marked, as a probability."""

    def forward(self, images: Tensor) -> Tensor:
        share = images[:, 0].mean(dim=(1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.zeros_like(share), torch.logit(share)], dim=1)


def test_equal_parts_are_taken_whatever_the_map() -> None:
    """The image is 1 and its blur too: only the mean colour would be told apart, so the first channel is marked."""
    images = torch.zeros((3, 3, 30, 30))
    images[:, 0, ::2] = 1
    maps = np.random.default_rng(0).random((3, 3, 3)).astype(np.float32)
    found = perturb(Counter(), images, maps, np.ones(3, dtype=np.int64), seed=1)
    # Wherever pixels are taken, their mean colour takes their place: half of them were marked, so the mean stays.
    at = FILLS.index(MEAN)
    np.testing.assert_allclose(found.probabilities[:, :, at, :, :], 0.5, atol=0.05)


def test_the_centre_goes_first_by_the_centre_map() -> None:
    images = torch.zeros((1, 3, 32, 32))
    images[:, 0, 10:22, 10:22] = 1
    found = perturb(Counter(), images, np.zeros((1, 2, 2), dtype=np.float32), np.array([1]), seed=0)
    curve = found.probabilities[0, ORDERS.index(CENTRE), FILLS.index(MEAN), WAYS.index(DELETION)]
    taken_whole = int(np.searchsorted(SHARES, 12 * 12 * 2 / 32**2))
    np.testing.assert_allclose(curve[taken_whole], images[:, 0].mean() * SHARES[taken_whole], atol=1e-3)


def test_blurring_leaves_a_plain_image_as_it_is() -> None:
    images = torch.full((2, 3, 32, 32), 0.3)
    found = perturb(Counter(), images, np.random.default_rng(0).random((2, 4, 4)), np.ones(2, dtype=np.int64), seed=0)
    np.testing.assert_allclose(found.probabilities[:, :, FILLS.index(BLURRED)], 0.3, atol=1e-6)
