"""One image file's bytes -> an upright 8-bit RGB image, or the reason why not.

What is done with each kind of file:

| file                                    | rule                                                              |
|-----------------------------------------|-------------------------------------------------------------------|
| 8-bit RGB                               | as it is; an embedded colour profile is not applied               |
| 8-, 4- or 2-bit grey                    | the same value in all three channels                              |
| palette                                 | the palette's colours                                             |
| alpha, opaque everywhere                | alpha dropped                                                     |
| alpha or a transparent colour, in use   | rejected: what lies under it is hidden, what lies behind unknown  |
| EXIF or TIFF orientation                | applied                                                           |
| 1-bit                                   | rejected: a mask, not a tile                                      |
| more than 8 bits a channel, float       | rejected: how to scale it is the owner's knowledge                |
| CMYK, YCbCr (undecoded), Lab, HSV       | rejected: an honest conversion needs the colour profile           |
| several images in one file              | rejected: pages, animations, phone pictures with a second image   |
| more than 4096 x 4096 px                | rejected from the header, before any pixel is decoded             |
| empty, not an image, truncated, damaged | rejected                                                          |

Damage is found where the format can tell: PNG by its checksums, JPEG by a missing end, all by a decoder that
fails. A JPEG or TIFF whose bytes changed in the middle may decode without an error: nothing in it says so.
"""

import io
import re
import warnings
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("TIFF", "PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096

_BITS_PER_SAMPLE, _SQUARE_WIDTH, _SQUARE_HEIGHT = 258, 322, 323  # TIFF tags
_OUT_OF_MEMORY = "out of memory"  # as Pillow's codecs say it
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "L", "LA", "La"}
_UNCONVERTED = {"CMYK", "YCbCr", "LAB", "HSV"}


class Rejection(Exception):  # noqa: N818 - a verdict about a file, not an error of the program
    """A file that cannot become a tile; the message is `kind: detail`."""


class Decoded(NamedTuple):
    """An upright RGB image, and what its file's header says (size before any rotation)."""

    image: Image.Image
    width: int
    height: int
    mode: str
    format: str
    compression: str | None


def decode(data: bytes) -> Decoded:
    """Decode one file by this module's table; raises Rejection, or MemoryError, which says nothing about the file."""
    if not data:
        raise Rejection("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "(?i)truncated|corrupt")
            return _decode(data)
    except UnidentifiedImageError:
        raise Rejection("not an image: no tif, png, jpg or webp by its content") from None
    except Image.DecompressionBombError:
        raise Rejection(f"too large: more than {MAX_PIXELS:,} pixels") from None
    except (Rejection, MemoryError):
        raise
    except Exception as error:  # decoders fail on hostile bytes in every way there is
        if str(error).startswith(_OUT_OF_MEMORY):
            raise MemoryError from None
        raise Rejection(f"damaged: {_one_line(error)}") from None


def _decode(data: bytes) -> Decoded:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_header(image, data)
    _check_whole(image, data)
    width, height = image.size
    mode, compression = image.mode, image.info.get("compression")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return Decoded(_to_rgb(image), width, height, mode, str(image.format), compression)


def _check_header(image: Image.Image, data: bytes) -> None:
    for width, height in (image.size, _square(image)):
        if width * height > MAX_PIXELS:
            raise Rejection(f"too large: {width} x {height} px is more than {MAX_PIXELS:,} pixels")
    if image.mode == "1":
        raise Rejection("1-bit: a mask, not a tile")
    if image.mode in _UNCONVERTED:
        raise Rejection(f"{image.mode} colours: convert it to RGB with its colour profile")
    if image.mode not in _COLOUR or _bits_per_channel(image, data) > 8:
        raise Rejection(f"more than 8 bits a channel: mode {image.mode}; scale it to 8-bit RGB")
    if _has_another(image):
        raise Rejection("several images in one file: keep one")


def _square(image: Image.Image) -> tuple[int, int]:
    """The size of the squares in which a TIFF may be packed: each is unpacked whole, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_SQUARE_WIDTH, 0)), int(tags.get(_SQUARE_HEIGHT, 0))


def _has_another(image: Image.Image) -> bool:
    # `n_frames` would visit every page of a TIFF, and take minutes for as many as fit into a file.
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    # Pillow opens 16-bit RGB as 8-bit RGB and drops the low bytes: only the file's own header tells.
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2").get(_BITS_PER_SAMPLE, (8,))))  # noqa: B009 - only TIFFs have it
    return 8


def _check_whole(image: Image.Image, data: bytes) -> None:
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums, which load() skips
    if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise Rejection("damaged: truncated, the JPEG has no end")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getextrema()[-1] != (255, 255):
            raise Rejection("transparent: flatten it onto the background that it should have")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error) or type(error).__name__)
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:200]
