"""A source as a stranger sends it: odd images, damaged ones, bombs, and names that no one would give."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.faults.ledger import Fault
from tests.faults.odd_images import animation, bombs, in_part_transparent, turned
from tests.trainer.tiles.test_decode import png_16_bit_rgb, tiff_16_bit_rgb
from tests.trainer.tiles.tissue import encoded, pixels, write
from trainer.__main__ import main
from trainer.tiles.listing import MAX_FILE_BYTES
from trainer.tiles.meta import REJECTED
from trainer.tiles.store import TileStore, verify

MOST_MB = 200
MOST_S = 30
TILE = encoded(pixels(0))
OPAQUE = Image.fromarray(np.dstack([pixels(1), np.full((32, 32), 255, np.uint8)]))
GREY = pixels(2)[..., 0]
INDEXED = Image.fromarray(pixels(3)).quantize(16)
CONVERTED: dict[str, tuple[bytes, np.ndarray]] = {
    "opaque alpha.png": (encoded(OPAQUE), pixels(1)),
    "grey.png": (encoded(GREY), np.repeat(GREY[..., None], 3, axis=2)),
    "grey with opaque alpha.png": (
        encoded(Image.merge("LA", (Image.fromarray(GREY), OPAQUE.getchannel("A")))),
        np.repeat(GREY[..., None], 3, axis=2),
    ),
    "palette.png": (encoded(INDEXED), np.asarray(INDEXED.convert("RGB"))),
    "on its side.png": (turned(), pixels(50).transpose(1, 0, 2)[:, ::-1]),
    "a TIFF by its content.png": (encoded(pixels(4), "TIFF"), pixels(4)),
}
"""What is taken, and the pixels that it must become."""
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "a text.png": (b"Tissue, allegedly", "not an image"),
    "a program.tif": (b"\x7fELF" + bytes(100), "not an image"),
    "PostScript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "not an image"),
    "half a JPEG.jpg": (encoded(pixels(5), "JPEG")[:-200], "damaged"),
    "half a PNG.png": (TILE[: len(TILE) // 2], "damaged"),
    "half a TIFF.tif": (encoded(pixels(5), "TIFF", compression="tiff_lzw")[:-300], "damaged"),
    "a flipped bit.png": (TILE[:1000] + bytes([TILE[1000] ^ 1]) + TILE[1001:], "damaged"),
    "transparent in part.png": (encoded(in_part_transparent()), "transparent"),
    "palette with a transparent colour.png": (encoded(INDEXED, transparency=3), "transparent"),
    "16-bit grey.png": (encoded(Image.new("I;16", (32, 32))), "more than 8 bits a channel"),
    "16-bit colour.png": (png_16_bit_rgb(), "more than 8 bits a channel"),
    "16-bit colour.tif": (tiff_16_bit_rgb(), "more than 8 bits a channel"),
    "fractions.tif": (encoded(Image.new("F", (32, 32)), "TIFF"), "more than 8 bits a channel"),
    "one bit.png": (encoded(Image.new("1", (32, 32))), "1-bit"),
    "CMYK.jpg": (encoded(Image.new("CMYK", (32, 32)), "JPEG"), "CMYK colours"),
    "Lab.tif": (encoded(Image.new("LAB", (32, 32)), "TIFF"), "LAB colours"),
    "two pages.tif": (animation("TIFF"), "several images in one file"),
    "animated.png": (animation("PNG"), "several images in one file"),
    "animated.webp": (animation("WEBP"), "several images in one file"),
    "another size.png": (encoded(pixels(6, 40, 40)), "wrong size"),
    "a table.csv": (b"path,label\n", "another kind of file"),
}
"""What is not taken, and why."""


def source(folder: Path) -> Path:
    """Two classes of good tiles, so that 32 px is the size of most."""
    for n in range(40):
        write(folder / ("TUM", "STR")[n % 2] / f"{n}.png", encoded(pixels(100 + n)))
    return folder


def rejections(store: Path) -> dict[str, str]:
    with (store / REJECTED).open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


@pytest.mark.fault(21, "corrupt, empty, mislabelled and odd-mode images", "each converted or listed, by the rule")
def test_odd_images_are_converted_or_listed(fault: Fault, tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    for name, (data, _) in {**CONVERTED, **REFUSED}.items():
        write(folder / "TUM" / name, data)
    for label in ("TUM", "STR"):
        write(folder / label / "of two classes.png", encoded(pixels(7)))
    assert main(["prepare", str(folder), str(tmp_path / "store")]) == 0
    store = verify(tmp_path / "store")
    row_of = {path: row for row, path in enumerate(store.index["path"])}
    for name, (_, expected) in CONVERTED.items():
        assert np.array_equal(store.tiles[row_of[f"TUM/{name}"]], expected), name
    found = rejections(store.path)
    for name, (_, reason) in REFUSED.items():
        assert found.pop(f"TUM/{name}").partition(":")[0] == reason, name
    assert {path: reason.partition(":")[0] for path, reason in found.items()} == {
        "STR/of two classes.png": "equal pixels under two labels",
        "TUM/of two classes.png": "equal pixels under two labels",
    }
    assert len(store) == 40 + len(CONVERTED)
    fault.times = len(CONVERTED) + len(REFUSED) + 2
    fault.figure = f"{len(CONVERTED)} converted to the pixel, {len(REFUSED) + 2} listed with the reason"


PROGRAM = """
import json, sys, time
from pathlib import Path
from trainer.errors import UsageError
from trainer.tiles.pack import pack

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

sources = [Path(name) for name in json.load(sys.stdin)]
pack(sources[0], sources[0].with_name("first.store"), processes=1)  # all that is loaded once is loaded now
for source in sources:
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), time.monotonic()
    pack(source, source.with_name(f"{source.name}.store"), processes=1)
    print(json.dumps([source.name, status("VmHWM") - before, time.monotonic() - began]), flush=True)
"""


def measure(sources: list[Path]) -> list[tuple[str, float, float]]:
    """Name of each source, MB that packing it takes beyond what the program had, and seconds."""
    given = json.dumps(list(map(str, sources)))
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=REPOSITORY, input=given, capture_output=True, text=True, timeout=300, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.fault(21, "bombs: images and zips that are small outside and huge inside", "listed; memory bounded")
def test_a_bomb_takes_no_more_memory_than_a_large_tile(fault: Fault, tmp_path: Path) -> None:
    fault.promise = f"listed, or converted; less than {MOST_MB} MB above the program's own, less than {MOST_S} s"
    sources = []
    for name, data in bombs().items():
        assert len(data) < 10e6
        folder = tmp_path / name
        write(folder / "TUM" / name, data)
        sources.append(folder)
        for n in range(3):
            write(folder / "STR" / f"{n}.png", encoded(pixels(n)))
    with zipfile.ZipFile(tmp_path / "zip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("STR/good.png", TILE)
        archive.writestr("TUM/too large.png", bytes(1 << 28))
        archive.writestr("TUM/as large as may be.png", bytes(MAX_FILE_BYTES))
        plain = encoded(Image.new("RGBA", (4096, 4096), (0, 0, 0, 255)), "TIFF")
        archive.writestr("TUM/as large as may be.tif", plain.ljust(MAX_FILE_BYTES, b"\0"))
    found = measure([*sources, tmp_path / "zip.zip"])
    print(*(f"{name}: {megabytes:.0f} MB, {seconds:.1f} s" for name, megabytes, seconds in found), sep="\n")
    assert len(found) == len(sources) + 1
    for name, megabytes, seconds in found:
        assert megabytes < MOST_MB, name
        assert seconds < MOST_S, name
    fault.times = len(found) + 2
    worst = max(found, key=lambda measured: measured[1])
    fault.figure = f"{worst[1]:.0f} MB at most ({worst[0]}), {max(seconds for *_, seconds in found):.1f} s at most"


NAMES = [
    "a\nb.png",
    "tab\tand\rreturn.png",
    "quotes \"'`.png",
    "comma, semicolon; =1+1.png",
    "<script>alert(1)</script>.png".replace("/", "\u2044"),
    "$(touch canary) && `id`.png",
    "-rf.png",
    "组织 \U0001f9ec.png",
    "\u202egnp.exe.png",
    "x" * 251 + ".png",
]
"""The last has 255 bytes, the most that a file system takes."""


@pytest.mark.fault(21, "names with newlines, quotes, markup, 255 bytes; not in UTF-8; class folders that lead out", "")
def test_odd_names_are_taken_as_they_are(fault: Fault, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fault.promise = "taken under their very names, or listed; nothing outside is read"
    folder = source(tmp_path / "source")
    for n, name in enumerate(NAMES):
        write(folder / "TUM" / name, encoded(pixels(200 + n)))
    write(folder / "a\nclass, \"of\" 'its' own" / "1.png", encoded(pixels(300)))
    write(folder / "\x1b[31mred" / "1.png", encoded(pixels(301)))
    with open(os.fsencode(folder) + b"/TUM/\xff\xfe.png", "wb") as file:  # noqa: PTH123 - a Path cannot show this
        file.write(TILE)
    os.mkdir(os.fsencode(folder) + b"/\xff\xfe")  # noqa: PTH102 - likewise
    with open(os.fsencode(folder) + b"/\xff\xfe/1.png", "wb") as file:  # noqa: PTH123 - likewise
        file.write(TILE)
    outside = write(tmp_path / "outside" / "secret.png", encoded(pixels(400))).parent
    (folder / "LNK").symlink_to(outside)
    (folder / "TUM" / "link.png").symlink_to(outside / "secret.png")
    assert main(["prepare", str(folder), str(tmp_path / "store")]) == 0
    store = TileStore.open(tmp_path / "store")
    paths = set(store.index["path"])
    assert {f"TUM/{name}" for name in NAMES} < paths
    assert "a\nclass, \"of\" 'its' own" in store.classes
    assert len(store) == 40 + len(NAMES) + 2
    said = capfd.readouterr()
    assert r"\x1b[31mred" in said.out
    assert "\x1b" not in said.out + said.err
    assert rejections(store.path) == {
        "LNK": "link: leads out of the folder, not followed",
        "TUM/link.png": "link: leads out of the folder, not followed",
        r"TUM/\xff\xfe.png": "the name is not valid UTF-8",
        r"\xff\xfe/1.png": "the name is not valid UTF-8",
    }
    assert main(["verify", str(store.path)]) == 0
    fault.times = len(NAMES) + 6
    fault.figure = f"{len(NAMES) + 2} taken, 4 listed; none steers the terminal"
