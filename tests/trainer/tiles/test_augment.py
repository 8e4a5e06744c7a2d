from dataclasses import fields

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as TF

from tests.trainer.tiles.test_colour import stained
from trainer.config import AugmentSection
from trainer.tiles.augment import MEAN, STD, Draws, draw, evaluation_batch, evaluation_box, training_batch

TOLERANCE = 1e-4
JITTERS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
EVERYTHING = {"rot90": True, "hue": 0.1, "stain": 0.1}
FIELDS = [field.name for field in fields(Draws)]


def make_tiles(count: int, size: int | tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Tiles with structure at every scale: noise on top of waves."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / f) + np.cos(y / g) for f, g in ((5, 9), (17, 3), (40, 31))], axis=2)
    noise = rng.normal(size=(count, height, width, 3))
    return torch.from_numpy((127 + 50 * waves + 40 * noise).clip(0, 255).astype(np.uint8))


def as_float(tile: torch.Tensor) -> torch.Tensor:
    return tile.permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("size", [64, 224, 512])
def test_training_equals_torchvision_with_the_same_parameters(size: int) -> None:
    augment = AugmentSection(input_size=224)
    tiles = make_tiles(6, size)
    drawn = draw(np.arange(6), seed=1, epoch=2, tile_size=(size, size), augment=augment)
    ours = training_batch(tiles, drawn, augment)
    for i, tile in enumerate(tiles):
        top, left, height, width = (int(v) for v in drawn.box[i])
        image = TF.resized_crop(as_float(tile), top, left, height, width, [224, 224], antialias=True)
        if drawn.flip[i, 0]:
            image = TF.vertical_flip(image)
        if drawn.flip[i, 1]:
            image = TF.horizontal_flip(image)
        for kind in drawn.order[i]:
            image = JITTERS[kind](image, float(drawn.jitter[i, kind]))
        theirs = TF.normalize(image, MEAN, STD)
        assert (ours[i] - theirs).abs().max() <= TOLERANCE


def by_hand(tile: torch.Tensor, drawn: Draws, i: int, target: int) -> torch.Tensor:
    """One tile as torchvision and `stained` augment it."""
    top, left, height, width = (int(v) for v in drawn.box[i])
    image = TF.resized_crop(as_float(tile), top, left, height, width, [target, target], antialias=True)
    if drawn.flip[i, 0]:
        image = TF.vertical_flip(image)
    if drawn.flip[i, 1]:
        image = TF.horizontal_flip(image)
    image = TF.rotate(image, 90.0 * int(drawn.quarters[i]))
    image = torch.from_numpy(stained(image.numpy(), *drawn.stain[i])).float()
    for turn in range(4):
        if turn == drawn.hue_turn[i]:
            image = TF.adjust_hue(image, float(drawn.hue[i]))
        if turn < 3:
            kind = drawn.order[i, turn]
            image = JITTERS[kind](image, float(drawn.jitter[i, kind]))
    return image


@pytest.mark.parametrize("shape", [64, (100, 60)])
@pytest.mark.parametrize("options", [EVERYTHING, *({name: value} for name, value in EVERYTHING.items())], ids=str)
def test_every_augmentation_equals_its_reference(options: dict[str, float], shape: int | tuple[int, int]) -> None:
    augment = AugmentSection(input_size=64, **options)
    tiles = make_tiles(24, shape)
    size = (int(tiles.shape[1]), int(tiles.shape[2]))
    drawn = draw(np.arange(24), seed=1, epoch=2, tile_size=size, augment=augment)
    ours = training_batch(tiles, drawn, augment)
    theirs = torch.stack([TF.normalize(by_hand(tile, drawn, i, 64), MEAN, STD) for i, tile in enumerate(tiles)])
    assert (ours - theirs).abs().max() <= TOLERANCE
    if augment.rot90:
        assert set(drawn.quarters) == {0, 1, 2, 3}
        assert len(np.unique(np.c_[drawn.flip, drawn.quarters], axis=0)) > 8


@pytest.mark.parametrize("size", [224, 512, (300, 200)])
def test_evaluation_equals_torchvisions_resize_and_centre_crop(size: int | tuple[int, int]) -> None:
    transform = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.Normalize(MEAN, STD)])
    tiles = make_tiles(3, size)
    ours = evaluation_batch(tiles, AugmentSection(eval_resize=256, eval_crop=224))
    theirs = torch.stack([transform(as_float(tile)) for tile in tiles])
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", [96, 224, 512])
def test_evaluation_of_the_whole_tile_equals_torchvisions_resize(size: int) -> None:
    tiles = make_tiles(3, size)
    ours = evaluation_batch(tiles, AugmentSection(input_size=224))
    theirs = torch.stack([TF.normalize(TF.resize(as_float(t), [224, 224], antialias=True), MEAN, STD) for t in tiles])
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_the_box_is_where_the_input_comes_from() -> None:
    """A white square in the middle of the box, and nothing else, fills the middle of the input."""
    augment = AugmentSection(eval_resize=256, eval_crop=224)
    top, left, height, width = evaluation_box((512, 512), augment)
    assert (top, left, height, width) == (32, 32, 448, 448)
    tile = torch.zeros(1, 512, 512, 3, dtype=torch.uint8)
    tile[0, int(top) : int(top + height / 2), int(left) : int(left + width / 2)] = 255
    bright = evaluation_batch(tile, augment)[0, 0] > 0
    assert bright[:111, :111].all()
    assert not bright[113:, :].any()
    assert not bright[:, 113:].any()


def test_draws_are_numbers_of_the_tiles_block() -> None:
    """What a tile draws is part of a run's identity: these columns stay where they are."""
    augment = AugmentSection(**EVERYTHING)
    rows = np.array([300, 511, 256])
    drawn = draw(rows, seed=5, epoch=1, tile_size=(224, 224), augment=augment)
    table = np.random.default_rng([5, 1, 1]).random((256, 32))[rows - 256]
    assert np.array_equal(drawn.flip, table[:, 22:24] < 0.5)
    assert np.allclose(drawn.jitter, 0.8 + 0.4 * table[:, 24:27])
    assert np.array_equal(drawn.quarters, np.floor(4 * table[:, 28]))
    assert np.allclose(drawn.hue, 0.2 * table[:, 29] - 0.1)
    assert np.array_equal(drawn.hue_turn, np.floor(4 * table[:, 30]))
    stains = np.random.default_rng([5, 1, 1, 1]).random((256, 6))[rows - 256]
    assert np.allclose(drawn.stain.reshape(3, 6), 0.2 * stains - 0.1)


@pytest.mark.parametrize("option", EVERYTHING)
def test_one_more_augmentation_leaves_the_others_draws_as_they_are(option: str) -> None:
    rows = np.arange(500)
    without = draw(rows, 3, 1, (224, 224), AugmentSection())
    with_it = draw(rows, 3, 1, (224, 224), AugmentSection(**{option: EVERYTHING[option]}))
    changed = {name for name in FIELDS if not np.array_equal(getattr(without, name), getattr(with_it, name))}
    assert changed == {"quarters" if option == "rot90" else option}
    assert not without.quarters.any()
    assert not without.hue.any()
    assert not without.stain.any()


def test_hue_comes_at_any_place_among_the_others() -> None:
    """All 24 orders of torchvision's ColorJitter, each as often."""
    drawn = draw(np.arange(24_000), 0, 0, (224, 224), AugmentSection(hue=0.1))
    _, counts = np.unique(np.c_[drawn.order, drawn.hue_turn], axis=0, return_counts=True)
    assert len(counts) == 24
    assert abs(counts - 1000).max() < 150
    assert abs(drawn.hue).max() <= 0.1
    assert abs(np.quantile(drawn.hue, 0.75) - 0.05) < 0.002


def test_a_tile_draws_the_same_in_any_company() -> None:
    augment = AugmentSection(**EVERYTHING)
    rows = np.array([3, 999, 256, 255, 70_000])
    together = draw(rows, seed=5, epoch=1, tile_size=(224, 224), augment=augment)
    for i, row in enumerate(rows):
        alone = draw(np.array([row]), seed=5, epoch=1, tile_size=(224, 224), augment=augment)
        for field in FIELDS:
            assert np.array_equal(getattr(alone, field)[0], getattr(together, field)[i])


def test_draws_differ_by_epoch_seed_and_tile() -> None:
    augment = AugmentSection()
    rows = np.arange(300)
    boxes = [draw(rows, s, e, (224, 224), augment).box for s, e in ((0, 0), (0, 1), (1, 0))]
    assert not any(np.array_equal(boxes[a], boxes[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len(np.unique(boxes[0], axis=0)) > 290


def test_draws_follow_torchvisions_distribution() -> None:
    """Area and ratio of 20,000 crops against as many of torchvision's own."""
    augment = AugmentSection()
    drawn = draw(np.arange(20_000), 0, 0, (224, 224), augment)
    torch.manual_seed(0)
    image = torch.zeros(3, 224, 224)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 1.3333]) for _ in range(20_000)])
    for column, name in enumerate(("top", "left", "height", "width")):
        ours = drawn.box[:, column]
        for quantile in (0.1, 0.5, 0.9):
            assert abs(np.quantile(ours, quantile) - np.quantile(theirs[:, column], quantile)) <= 4, name
    assert abs(drawn.flip.mean(axis=0) - 0.5).max() < 0.02
    assert drawn.jitter.min() >= 0.8
    assert drawn.jitter.max() <= 1.2
    assert len(np.unique(drawn.order, axis=0)) == 6


def test_a_narrow_tile_falls_back_to_its_centre() -> None:
    augment = AugmentSection(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    drawn = draw(np.arange(4), 0, 0, (300, 40), augment)
    assert (drawn.box == [130, 0, 40, 40]).all()


def test_no_augmentation_is_the_identity() -> None:
    augment = AugmentSection(
        crop_scale=(1, 1), crop_ratio=(1, 1), hflip=0, vflip=0, brightness=0, contrast=0, saturation=0, input_size=64
    )
    tiles = make_tiles(5, 64)
    drawn = draw(np.arange(5), 0, 0, (64, 64), augment)
    assert (training_batch(tiles, drawn, augment) - evaluation_batch(tiles, augment)).abs().max() < 1e-5
