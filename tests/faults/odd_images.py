"""Image files as strangers send them: small ones that are huge inside, and one of every odd kind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from PIL import Image

from tests.trainer.tiles.tissue import encoded, pixels

ORIENTATION = 274
SIDE = 30_000


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG of what may be said and packed in it; `before` are chunks that come first."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *before, _chunk(b"IDAT", rows), _chunk(b"IEND", b"")])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(size: int) -> bytes:
    """Deflated zeros: a thousandth of their size."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])


def tiff(entries: Sequence[tuple[int, int, int, int]], content: bytes = b"", pages: int = 1) -> bytes:
    """A little-endian TIFF: (tag, type, count, value) entries, the same ones in every page, after the content."""
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    first, size = 8 + len(content), len(page) + 4
    nexts = [first + size * number for number in range(1, pages)] + [0]
    return b"".join(
        [struct.pack("<2sHI", b"II", 42, first), content, *(page + struct.pack("<I", place) for place in nexts)]
    )


def tiff_of(width: int, height: int, side: int, content: bytes, pages: int = 1) -> bytes:
    """A grey TIFF that says it is packed by deflate in squares of `side`; all its content is the first of them."""
    said = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(content)}
    return tiff([(tag, 4, 1, value) for tag, value in said.items()], content, pages)


def bombs() -> dict[str, bytes]:
    """Files of at most a few hundred kB that would fill hundreds of MB, by what they are."""
    large = zeros(SIDE * SIDE // 4)
    text = _chunk(b"zTXt", b"a\0\0" + zeros(400 << 20))
    profile = _chunk(b"iCCP", b"a\0\0" + zeros(400 << 20))
    tile = (32 * 3 + 1) * 32
    blank = Image.new("RGB", (4096, 4096))
    return {
        "30,000 px PNG of two bits.png": png(SIDE, SIDE, 2, 0, large),
        "30,000 px PNG of colours.png": png(SIDE, SIDE, 8, 2, large),
        "PNG with 400 MB of text.png": png(32, 32, 8, 2, zeros(tile), text),
        "PNG with a profile of 400 MB.png": png(32, 32, 8, 2, zeros(tile), profile),
        "PNG with more rows than it says.png": png(32, 32, 8, 2, zeros(400 << 20)),
        "30,000 px TIFF.tif": tiff_of(SIDE, SIDE, 30_000 // 16 * 16, large),
        "TIFF of one square of 30,000 px.tif": tiff_of(32, 32, 30_000 // 16 * 16, large),
        "TIFF of 50,000 pages.tif": tiff_of(32, 32, 32, zeros(32 * 32), pages=50_000),
        "16,383 px WebP.webp": webp_that_says_it_is_larger(),
        "65,500 px JPEG.jpg": jpeg_that_says_it_is_larger(),
        "the largest PNG that is allowed.png": encoded(blank),
        "the largest TIFF that is allowed.tif": encoded(blank.convert("RGBA"), "TIFF", compression="tiff_lzw"),
        "the largest JPEG that is allowed.jpg": encoded(blank, "JPEG", progressive=True),
    }


def jpeg_that_says_it_is_larger() -> bytes:
    data = encoded(pixels(0), "JPEG")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 65_500, 65_500) + data[size + 4 :]


def webp_that_says_it_is_larger() -> bytes:
    """Lossless WebP keeps width and height, less one, in 14 bits each."""
    data = encoded(pixels(0), "WEBP", lossless=True)
    size = data.index(b"VP8L") + 9
    (bits,) = struct.unpack("<I", data[size : size + 4])
    return data[:size] + struct.pack("<I", bits >> 28 << 28 | 16_382 << 14 | 16_382) + data[size + 4 :]


def animation(form: str) -> bytes:
    """Two pictures in one file."""
    return encoded(pixels(0), form, save_all=True, append_images=[Image.fromarray(pixels(1))])


def turned() -> bytes:
    """A tile that says it lies on its side."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(pixels(50), exif=exif)


def in_part_transparent() -> Image.Image:
    image = Image.fromarray(pixels(60)).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 0))
    return image
