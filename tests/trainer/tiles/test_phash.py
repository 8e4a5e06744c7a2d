import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.fft import dctn

from trainer.tiles.phash import phash


def texture(seed: int, side: int = 224) -> Image.Image:
    """Blobs of a few pixels, as tissue has them."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return (
        Image.fromarray(noise)
        .filter(ImageFilter.GaussianBlur(side / 20))
        .point(lambda v: min(255, max(0, (v - 127) * 20 + 127)))
    )


def distance(one: Image.Image, other: Image.Image) -> int:
    return (int(phash(one), 16) ^ int(phash(other), 16)).bit_count()


def test_the_bits_are_those_of_scipys_dct():
    for seed in range(5):
        image = texture(seed)
        small = np.asarray(image).reshape(32, 7, 32, 7, 3).mean((1, 3)).round().astype(np.uint8)
        grey = np.asarray(Image.fromarray(small).convert("L"), dtype=float)
        low = dctn(grey, norm="ortho")[1:9, 1:9]
        expected = int("".join(str(int(bit)) for bit in (low > np.median(low)).flat), 2)
        assert (int(phash(image), 16) ^ expected).bit_count() <= 1  # a coefficient may lie at the median
        assert len(phash(image)) == 16


def test_it_survives_recompression_brightness_and_size():
    image = texture(0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=60)
    assert distance(image, Image.open(stream)) <= 4
    assert distance(image, image.point(lambda value: value * 0.8)) <= 4
    assert distance(image, image.resize((300, 300), Image.Resampling.BICUBIC)) <= 6


def test_other_images_are_far_off():
    images = [texture(seed) for seed in range(8)]
    assert min(distance(a, b) for n, a in enumerate(images) for b in images[:n]) > 12


@pytest.mark.parametrize("value", [0, 127, 243, 255])
def test_a_blank_image_gives_zeros(value):
    assert phash(Image.new("RGB", (224, 224), (value, value, value))) == "0" * 16
