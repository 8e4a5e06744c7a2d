import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.tiles.tissue import encoded, pixels
from trainer.tiles.decode import MAX_PIXELS, Rejection, decode

ORIENTATION = 274
FORMS = [
    ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(data).image)


@pytest.mark.parametrize(("form", "how"), FORMS)
def test_8_bit_rgb_is_taken_as_it_is(form, how):
    tile = pixels(0, 20, 30)
    result = decode(encoded(tile, form, **how))
    assert np.array_equal(np.asarray(result.image), tile)
    assert (result.width, result.height, result.mode, result.format) == (30, 20, "RGB", form)


def test_compression_is_that_of_the_file():
    assert decode(encoded(pixels(0), "TIFF", compression="packbits")).compression == "packbits"
    assert decode(encoded(pixels(0), "JPEG")).compression is None


def test_grey_is_repeated_over_the_channels():
    grey = pixels(0)[..., 0]
    assert np.array_equal(decoded(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_a_palette_gives_its_colours():
    indexed = Image.fromarray(pixels(0)).quantize(16)
    colours = np.array(indexed.getpalette()).reshape(-1, 3)
    expected = colours[np.asarray(indexed)]
    assert np.array_equal(decoded(encoded(indexed)), expected)


def with_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([pixels(0), alpha]))


def test_alpha_that_is_opaque_is_dropped():
    opaque = np.full((32, 32), 255, np.uint8)
    assert np.array_equal(decoded(encoded(with_alpha(opaque))), pixels(0))
    grey = Image.merge("LA", (Image.fromarray(pixels(0)[..., 0]), Image.fromarray(opaque)))
    assert np.array_equal(decoded(encoded(grey))[..., 1], pixels(0)[..., 0])


def test_one_transparent_pixel_is_enough_to_reject():
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[3, 4] = 254
    indexed = Image.fromarray(pixels(0)).quantize(16)
    for data in (
        encoded(with_alpha(alpha)),
        encoded(with_alpha(alpha), "TIFF"),
        encoded(with_alpha(alpha), "WEBP", lossless=True),
        encoded(indexed, transparency=3),
        encoded(pixels(0), transparency=tuple(map(int, pixels(0)[5, 5]))),
    ):
        with pytest.raises(Rejection, match=r"^transparent"):
            decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "how"), FORMS)
def test_orientation_is_applied_once(orientation, form, how):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    tile = pixels(0, 20, 30)
    upright = {  # the EXIF standard's definition of each value
        1: tile,
        2: tile[:, ::-1],
        3: tile[::-1, ::-1],
        4: tile[::-1],
        5: tile.transpose(1, 0, 2),
        6: tile[::-1].transpose(1, 0, 2),
        7: tile[::-1, ::-1].transpose(1, 0, 2),
        8: tile.transpose(1, 0, 2)[::-1],
    }
    assert np.array_equal(decoded(encoded(tile, form, exif=exif, **how)), upright[orientation])


def test_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(pixels(0, 20, 30), "JPEG", exif=exif, quality=95)
    turned = np.asarray(Image.open(io.BytesIO(data))).transpose(1, 0, 2)[:, ::-1]
    assert np.array_equal(decoded(data), turned)


def png_16_bit_rgb() -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_16_bit_rgb() -> bytes:
    """A 2 x 2 px little-endian TIFF with three 16-bit samples, uncompressed."""
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", 0)
    return head.ljust(134, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(24)


def several_pages() -> bytes:
    return encoded(pixels(0), "TIFF", save_all=True, append_images=[Image.fromarray(pixels(1))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"Tissue, allegedly", "not an image"),
        (encoded(pixels(0), "BMP"), "not an image"),
        (encoded(pixels(0), "GIF"), "not an image"),
        (encoded(Image.new("1", (32, 32)), "PNG"), "1-bit"),
        (encoded(Image.new("CMYK", (32, 32)), "JPEG"), "CMYK colours"),
        (encoded(Image.new("CMYK", (32, 32)), "TIFF"), "CMYK colours"),
        (encoded(Image.new("LAB", (32, 32)), "TIFF"), "LAB colours"),
        (encoded(Image.new("I;16", (32, 32)), "TIFF"), "more than 8 bits"),
        (encoded(Image.new("I;16", (32, 32)), "PNG"), "more than 8 bits"),
        (encoded(Image.new("F", (32, 32)), "TIFF"), "more than 8 bits"),
        (encoded(Image.new("I", (32, 32)), "TIFF"), "more than 8 bits"),
        (png_16_bit_rgb(), "more than 8 bits"),
        (tiff_16_bit_rgb(), "more than 8 bits"),
        (several_pages(), "several images"),
        (encoded(pixels(0), "WEBP", save_all=True, append_images=[Image.fromarray(pixels(1))]), "several images"),
        (encoded(pixels(0), "PNG", save_all=True, append_images=[Image.fromarray(pixels(1))]), "several images"),
    ],
)
def test_what_cannot_be_a_tile_is_rejected(data, reason):
    with pytest.raises(Rejection, match=f"^{reason}"):
        decode(data)


@pytest.mark.parametrize(("form", "how"), [*FORMS, ("JPEG", {}), ("WEBP", {})])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_rejected(form, how, kept):
    data = encoded(pixels(0, 64, 64), form, **how)
    with pytest.raises(Rejection):
        decode(data[: min(int(kept * len(data)), len(data) - 5)])


def test_a_jpeg_without_its_end_is_rejected():
    data = encoded(pixels(0, 64, 64), "JPEG")
    decode(data + bytes(100))  # padding after the end does no harm
    with pytest.raises(Rejection, match=r"^damaged"):
        decode(data[:-2])


@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_png_with_a_flipped_bit_is_rejected(where):
    data = bytearray(encoded(pixels(0, 64, 64)))
    data[int(where * len(data))] ^= 1
    with pytest.raises(Rejection, match=r"^damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("size", [(4097, 4096), (9000, 9000), (60000, 60000)])
def test_a_bomb_is_rejected_by_its_header(size):
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = bytearray(encoded(pixels(0)))
    data[16:29], data[29:33] = header, struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(Rejection, match=r"^too large"):
        decode(bytes(data))


@given(st.sampled_from([*FORMS, ("JPEG", {})]), st.data())
def test_hostile_bytes_give_an_image_or_a_reason(form_and_how, data):
    form, how = form_and_how
    content = bytearray(encoded(pixels(0, 8, 8), form, **how))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Rejection):
        image = decode(bytes(content)).image
        assert image.mode == "RGB"
        assert image.width * image.height <= MAX_PIXELS


def test_reasons_are_one_line_and_the_same_every_time():
    reasons = set()
    for _ in range(2):
        with pytest.raises(Rejection) as rejection:
            decode(b"II*\0" + bytes(40))
        reasons.add(str(rejection.value))
    assert len(reasons) == 1
    assert "\n" not in reasons.pop()
